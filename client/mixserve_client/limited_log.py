"""Log lines about what may happen a thousand times a second: one of each kind per second, then with a count."""

import logging
import threading
import time
from collections.abc import Callable

Clock = Callable[[], float]

_EVERY_S = 1.0


class LimitedLog:
    """Warnings of one kind. Thread-safe. `count` is how often `warn` was called."""

    def __init__(self, logger: logging.Logger, clock: Clock = time.monotonic):
        self.count = 0
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._untold = 0
        self._told_at = -_EVERY_S

    def warn(self, message: str, *arguments: object) -> None:
        """Log the message, unless a line was logged less than a second ago: then the next one has their number."""
        with self._lock:
            self.count += 1
            now = self._clock()
            if now - self._told_at < _EVERY_S:
                self._untold += 1
                return
            untold, self._untold, self._told_at = self._untold, 0, now
        text = message % arguments if arguments else message
        self._logger.warning("%s%s", text, f" (and {untold} more since the last such line)" if untold else "")
