"""Keeps a forked process from using its parent's threads, connections, and locks that another thread may hold."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that `make` returns, made once per process at its first use, even if threads race for it."""

    def __init__(self, make: Callable[[], T]):
        self._make = make
        self._made: list[T] = []
        self._lock = threading.Lock()
        renew_in_forks(self, PerProcess[T]._renew)

    @property
    def here(self) -> T:
        """The value of this process. Raises what `make` raises."""
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]

    def _renew(self) -> None:
        leave_to_parent(self._made)
        self._made, self._lock = [], threading.Lock()


# Weak keys: to be renewed in forks must not keep an owner alive.
_renewals: "weakref.WeakKeyDictionary[Any, Callable[[Any], None]]" = weakref.WeakKeyDictionary()
_parent_objects: list[Any] = []


def renew_in_forks(owner: T, renew: Callable[[T], None]) -> None:
    """Call `renew(owner)` in every process that is forked while `owner` lives, before any other code runs there.

    `renew` gives `owner` new locks, and takes from it what only the parent may use.
    """
    _renewals[owner] = renew


def leave_to_parent(obj: Any) -> None:
    """Keep the parent's `obj` alive in this process, and never use it.

    Its destructor could wait for a lock of a thread that does not exist here, or close what the parent still uses.
    """
    _parent_objects.append(obj)


def _renew_all() -> None:
    # A copy, since `renew` may register owners. No lock: a process that was just forked has one thread.
    for owner, renew in list(_renewals.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
