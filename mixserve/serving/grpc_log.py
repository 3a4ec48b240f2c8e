"""What gRPC must not log."""

import logging


class _NoHeaders(logging.Filter):
    # gRPC logs, with a traceback, the whole value of a header that is not UTF-8: a token that was pasted with a
    # non-breaking space, for example. Anybody can make it do so, as often as they like.
    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Invalid encoding on")


def hide_headers() -> None:
    """Keep headers of calls out of the log; a second call does nothing."""
    logger = logging.getLogger("grpc._cython.cygrpc")
    if not any(isinstance(known, _NoHeaders) for known in logger.filters):
        logger.addFilter(_NoHeaders())
