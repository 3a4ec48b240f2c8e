"""Counts running calls, and waits until there are none."""

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
        """Wait up to `timeout_s` seconds until no call is running. False if some still are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, timeout_s)
