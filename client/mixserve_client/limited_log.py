"""Log lines about what may happen a thousand times a second: one of each kind per second, then with a count."""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

from mixserve_client.forks import renew_in_forks

Clock = Callable[[], float]

_EVERY_S = 1.0


class _Counts:
    """How often each kind of line was due in this process."""

    def __init__(self) -> None:
        self._by_kind = Counter[str]()
        self._renew()
        renew_in_forks(self, _Counts._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def add(self, kind: str, count: int = 1) -> None:
        with self._lock:
            self._by_kind[kind] += count

    def copy(self) -> dict[str, int]:
        with self._lock:
            return dict(self._by_kind)


_counts = _Counts()


class LimitedLog:
    """Lines of one kind. Thread-safe. `count` is how often one was due."""

    def __init__(self, logger: logging.Logger, kind: str = "", clock: Clock = time.monotonic):
        """`kind` is the name under which `limit_hits` counts these lines, together with others of this process; empty
        for those that are about no limit."""
        self.count = 0
        self._logger = logger
        self._kind = kind
        self._clock = clock
        self._untold = 0
        self._told_at = -_EVERY_S
        self._renew()
        renew_in_forks(self, LimitedLog._renew)
        if kind:
            _counts.add(kind, 0)

    def _renew(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may warn in a thread that holds it

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
        """As `error`, with the traceback of the error that is handled now.

        Raises nothing, whatever handlers of the log raise, such as SystemExit: it is for threads that must live.
        """
        with suppress(BaseException):
            self._log(logging.ERROR, message, arguments, None, sys.exception())

    def _log(
        self,
        level: int,
        message: str,
        arguments: tuple[object, ...],
        extra: Mapping[str, object] | None,
        exc_info: BaseException | None = None,
    ) -> None:
        if self._kind:
            _counts.add(self._kind)
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


class LimitedLogs:
    """Warnings of several kinds, each as a `LimitedLog` writes them. Thread-safe."""

    def __init__(self, logger: logging.Logger, clock: Clock = time.monotonic):
        self._logger = logger
        self._clock = clock
        self._logs = dict[object, LimitedLog]()

    def warn(self, kind: object, message: str, *arguments: object) -> None:
        """Log the message, unless a line of the same kind was logged less than a second ago."""
        found = self._logs.get(kind)
        if found is None:
            found = self._logs.setdefault(kind, LimitedLog(self._logger, clock=self._clock))
        found.warn(message, *arguments)


def limit_hits() -> dict[str, int]:
    """How often each kind of line was due in this process, whether or not it was logged."""
    return _counts.copy()
