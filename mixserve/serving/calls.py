"""How many calls are running, and a way to wait until none is."""

import threading


class CallCounter:
    """A context manager around each call."""

    def __init__(self) -> None:
        self._running = 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            self._running += 1

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def wait_for_none(self, timeout_s: float) -> bool:
        """Wait until no call runs; False if some still do after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, timeout_s)
