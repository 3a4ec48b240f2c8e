"""What gRPC must not log, or not as often as its peers like."""

import logging
import threading
import time

_EVERY_S = 1.0
# What gRPC's Python code says of calls: of requests that cannot be read, and of what handlers raise.
_ABOUT_CALLS = ("grpc._common", "grpc._server", "grpc._cython.cygrpc")


class _Limited(logging.Filter):
    """Lets one record a second through, and says how many there were since."""

    # What strangers send may cause some, with a traceback each.
    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._told_at, self._untold = -_EVERY_S, 0

    def filter(self, record: logging.LogRecord) -> bool:
        # gRPC logs, with a traceback, the whole value of a header that is not UTF-8: a token that was pasted with a
        # non-breaking space, for example.
        if str(record.msg).startswith("Invalid encoding on"):
            return False
        with self._lock:
            now = time.monotonic()
            if now - self._told_at < _EVERY_S:
                self._untold += 1
                return False
            untold, self._untold, self._told_at = self._untold, 0, now
        if untold:
            record.msg, record.args = f"{record.getMessage()} (and {untold} more since the last such line)", ()
        return True


def limit_grpc_log() -> None:
    """Keep headers of calls out of the log, and floods; a second call does nothing."""
    for name in _ABOUT_CALLS:
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Limited) for known in logger.filters):
            logger.addFilter(_Limited())
