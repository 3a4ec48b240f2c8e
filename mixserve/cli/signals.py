"""SIGTERM and SIGINT, heard by a main thread that waits."""

import os
import select
import signal

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_EVERY_S = 1.0


class StopSignals:
    """The first signal sets `was_told`, and a second one ends the process with 1.

    Before `is_serving` is set, a signal ends the process with 0: it has no calls to finish.
    """

    def __init__(self) -> None:
        # Python runs a signal handler in the main thread, between two bytecodes. If the thread waits for a lock, and
        # the signal came just before the wait or to another thread, the handler never runs. With set_wakeup_fd the C
        # handler writes a byte to this pipe, and a read cannot miss that.
        self.woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self.woken, False)
        self.is_serving = self.was_told = False

    def hear(self) -> None:
        """Set the handlers; again after code of users, which may have replaced them, as asyncio does."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._stop)

    def wait(self) -> None:
        """Wait for the first signal, or `tell`."""
        while not self.was_told:
            # A timeout, in case a source's code replaces the wakeup fd later: a signal is then noticed within a second.
            if select.select([self.woken], [], [], _LOOK_EVERY_S)[0]:
                self.drain()

    def drain(self) -> None:
        """Read what woke this process."""
        os.read(self.woken, 64)

    def tell(self) -> None:
        """As the first signal does, from any thread; does nothing after it."""
        if not self.is_serving:
            os._exit(0)
        self.was_told = True
        os.write(self._wake, b"\0")

    def _stop(self, *_: object) -> None:
        if not self.is_serving:
            os._exit(0)
        if self.was_told:
            os._exit(1)
        self.was_told = True


def hear_no_signals() -> None:
    """From now on, signals end this process as they end any other."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
