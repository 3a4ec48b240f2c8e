"""One thread that does the chores of a server every second."""

import logging
import threading
import time
from collections.abc import Callable

from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

_EVERY_S = 1.0
_HANGS_S = 10.0


class Regularly:
    """Calls each of `chores` every second, from `start` to `close`; a chore that fails is logged, and called again."""

    def __init__(self, *chores: Callable[[], None]):
        self._chores = chores
        self._failures = LimitedLog(_logger)
        self._closed = threading.Event()
        self._round_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="mixserve-chores", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._round_at = time.monotonic()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the chores are done, so that no thread holds the interpreter, or a lock that they need, for ever.

        False before `start` and after `close`, too.
        """
        return self._thread.is_alive() and time.monotonic() - self._round_at < _HANGS_S

    def close(self) -> None:
        """End after the chore in progress."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_EVERY_S):
            self._round_at = time.monotonic()
            for chore in self._chores:
                try:
                    chore()
                except BaseException:  # such as SystemExit from a handler of the log: this thread must live
                    self._failures.exception("a chore of the server failed; it is tried again in %.0f s", _EVERY_S)
