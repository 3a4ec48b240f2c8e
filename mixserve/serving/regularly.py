"""One thread that does the chores of a server every second."""

import logging
import threading
from collections.abc import Callable

_logger = logging.getLogger("mixserve")

_EVERY_S = 1.0


class Regularly:
    """Calls each of `chores` every second, from `start` to `close`; a chore that fails is logged, and called again."""

    def __init__(self, *chores: Callable[[], None]):
        self._chores = chores
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mixserve-chores", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End after the chore in progress."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_EVERY_S):
            for chore in self._chores:
                try:
                    chore()
                except BaseException:  # such as SystemExit from a handler of the log: this thread must live
                    _logger.exception("a chore of the server failed; it is tried again in %.0f s", _EVERY_S)
