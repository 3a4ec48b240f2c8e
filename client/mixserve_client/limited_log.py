"""Log lines about what may happen a thousand times a second: one of each kind per second, then with a count."""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

Clock = Callable[[], float]

_EVERY_S = 1.0

_counts = Counter[str]()
_counting = threading.Lock()


class LimitedLog:
    """Lines of one kind. Thread-safe. `count` is how often one was due."""

    def __init__(self, logger: logging.Logger, kind: str, clock: Clock = time.monotonic):
        """`kind` is the name under which `limit_hits` counts these lines, together with others of this process."""
        self.count = 0
        self._logger = logger
        self._kind = kind
        self._clock = clock
        self._lock = threading.Lock()
        self._untold = 0
        self._told_at = -_EVERY_S
        with _counting:
            _counts[kind] += 0

    def warn(self, message: str, *arguments: object, extra: Mapping[str, object] | None = None) -> None:
        """Log the message, unless a line was logged less than a second ago: then the next one has their number.

        `extra` are fields of the record, as in `logging`.
        """
        self._log(logging.WARNING, message, arguments, extra)

    def info(self, message: str, *arguments: object, extra: Mapping[str, object] | None = None) -> None:
        """As `warn`, at the level INFO."""
        self._log(logging.INFO, message, arguments, extra)

    def error(
        self,
        message: str,
        *arguments: object,
        extra: Mapping[str, object] | None = None,
        exc_info: BaseException | None = None,
    ) -> None:
        """As `warn`, at the level ERROR, with the traceback of `exc_info`."""
        self._log(logging.ERROR, message, arguments, extra, exc_info)

    def exception(self, message: str, *arguments: object) -> None:
        """As `error`, with the traceback of the error that is handled now."""
        self._log(logging.ERROR, message, arguments, None, sys.exception())

    def _log(
        self,
        level: int,
        message: str,
        arguments: tuple[object, ...],
        extra: Mapping[str, object] | None,
        exc_info: BaseException | None = None,
    ) -> None:
        with _counting:
            _counts[self._kind] += 1
        with self._lock:
            self.count += 1
            now = self._clock()
            if now - self._told_at < _EVERY_S:
                self._untold += 1
                return
            untold, self._untold, self._told_at = self._untold, 0, now
        text = message % arguments if arguments else message
        more = f" (and {untold} more since the last such line)" if untold else ""
        self._logger.log(level, "%s%s", text, more, extra=extra, exc_info=exc_info)


def limit_hits() -> dict[str, int]:
    """How often each kind of line was due in this process, whether or not it was logged."""
    with _counting:
        return dict(_counts)
