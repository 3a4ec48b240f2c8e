"""Notes of many threads, which one of them adds up now and then."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from mixserve_client.forks import renew_in_forks

T = TypeVar("T")

_MOST = 256


class Journal(Generic[T]):
    """Collects notes, and gives them to `add` in lists, in one thread at a time.

    A note costs what it takes to append to a list: adding up many together is cheaper than counting each by itself,
    and no thread waits for another.
    """

    def __init__(self, add: Callable[[list[T]], None], most: int = _MOST):
        """After `most` notes they are added up by the thread that made the last one. `add` must not raise."""
        self._notes = deque[T]()
        self._add = add
        self._most = most
        self._renew()
        renew_in_forks(self, Journal[T]._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def note(self, note: T) -> None:
        """Note something."""
        self._notes.append(note)
        if len(self._notes) >= self._most and self._lock.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._lock.release()

    def add_up(self) -> None:
        """Add up all notes that there are."""
        with self._lock:
            self._add_up()

    def _add_up(self) -> None:
        notes = [self._notes.popleft() for _ in range(len(self._notes))]
        if notes:
            self._add(notes)
