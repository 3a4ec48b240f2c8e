"""SIGTERM, SIGINT and SIGHUP, heard by a main thread that waits."""

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_LOOK_EVERY_S = 1.0


class Signals:
    """The first SIGTERM or SIGINT sets `was_told`, and a second one ends the process with 1.

    Before `is_serving` is set, such a signal ends the process with 0: it has no calls to finish. SIGHUP asks for a
    reload, at any time: one that comes before the server serves is done then.
    """

    def __init__(self) -> None:
        # Python runs a signal handler in the main thread, between two bytecodes. If the thread waits for a lock, and
        # the signal came just before the wait or to another thread, the handler never runs. With set_wakeup_fd the C
        # handler writes a byte to this pipe, and a read cannot miss that.
        self.woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self.woken, False)
        self.is_serving = self.was_told = self._wants_reload = False

    def hear(self) -> None:
        """Set the handlers; again after code of users, which may have replaced them, as asyncio does."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _STOPPING:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reload)

    def wait(self, reload: Callable[[], None]) -> None:
        """Wait for the first signal to stop, or `tell`. Calls `reload` for each SIGHUP, and `tell_to_reload`."""
        while not self.was_told:
            if self.take_reload():
                reload()
            # A timeout, in case a source's code replaces the wakeup fd later: a signal is then noticed within a second.
            elif select.select([self.woken], [], [], _LOOK_EVERY_S)[0]:
                self.drain()

    def drain(self) -> None:
        """Read what woke this process."""
        os.read(self.woken, 64)

    def take_reload(self) -> bool:
        """Whether a reload is due, which the caller does then."""
        if not self._wants_reload:
            return False
        self._wants_reload = False  # not in one step with the look, between which the handler may run
        return True

    def tell(self) -> None:
        """As the first signal to stop does, from any thread; does nothing after it."""
        if not self.is_serving:
            os._exit(0)
        self.was_told = True
        os.write(self._wake, b"\0")

    def tell_to_reload(self) -> None:
        """As SIGHUP does, from any thread."""
        self._wants_reload = True
        with suppress(BlockingIOError):  # it is awake already
            os.write(self._wake, b"\0")

    def _stop(self, *_: object) -> None:
        if not self.is_serving:
            os._exit(0)
        if self.was_told:
            os._exit(1)
        self.was_told = True

    def _reload(self, *_: object) -> None:
        self._wants_reload = True


def hear_no_signals() -> None:
    """From now on, signals end this process as they end any other."""
    for number in (*_STOPPING, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
