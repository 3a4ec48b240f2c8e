"""What a forked process must not share with its parent: threads, connections, and locks that another thread holds."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """What `make` returns, made once in each process that asks for it, also when its threads race."""

    def __init__(self, make: Callable[[], T]):
        self._make = make
        self._made: list[T] = []
        self._lock = threading.Lock()
        renew_in_forks(self, PerProcess[T]._renew)

    @property
    def here(self) -> T:
        """That of this process. Raises what `make` raises."""
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]

    def _renew(self) -> None:
        leave_to_parent(self._made)
        self._made, self._lock = [], threading.Lock()


_renewing: "weakref.WeakKeyDictionary[Any, Callable[[Any], None]]" = weakref.WeakKeyDictionary()
_parents: list[Any] = []


def renew_in_forks(owner: T, renew: Callable[[T], None]) -> None:
    """Call `renew(owner)` in every process that is forked off while `owner` lives, before anything else runs there: it
    gives `owner` new locks, and takes from it what only its parent may use."""
    _renewing[owner] = renew


def leave_to_parent(owned: Any) -> None:
    """Keep what is the parent's alive in this process: its end here could wait for a lock of a thread that is gone, or
    end what the parent still uses."""
    _parents.append(owned)


def _renew_all() -> None:
    for owner, renew in list(_renewing.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
