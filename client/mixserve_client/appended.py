"""Immutable sequences that grow: one that continues another shares its memory, so that an item more costs the same at
any length."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, Self, TypeVar, cast, overload

T = TypeVar("T")


class Appended(Sequence[T], Generic[T]):
    """The first items of a list to which other such sequences may have added more; safe to use from many threads.

    Slices that begin at 0 share the list too.
    """

    __slots__ = ("_items", "_length")

    def __init__(self, items: Iterable[T] = ()):
        self._items = list(items)
        self._length = len(self._items)

    def followed_by(self, items: Iterable[T]) -> Self:
        """This sequence, and `items` after it."""
        added = list(items)
        with _lock:
            # A list that another sequence has continued in its own way is left to that one.
            whole = self._items if len(self._items) == self._length else self._items[: self._length]
            whole.extend(added)
            return self._of(whole, self._length + len(added))

    def shared_with(self, other: "Appended[T]") -> int:
        """How many items at the beginning are the same objects in both, as far as that can be told."""
        most = min(len(self), len(other))
        if self._items is other._items:
            return most
        return next((at for at in range(most) if self._items[at] is not other._items[at]), most)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return islice(self._items, self._length)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "Appended[T]": ...

    def __getitem__(self, place: int | slice) -> "T | Appended[T]":
        if isinstance(place, slice):
            start, stop, step = place.indices(self._length)
            if (start, step) == (0, 1):
                return self._of(self._items, stop)
            return Appended(self._items[at] for at in range(start, stop, step))
        if not -self._length <= place < self._length:
            raise IndexError(f"there are {self._length} items, and none at {place}")
        return self._items[place % self._length]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Appended):
            return NotImplemented
        others = cast(Appended[Any], other)
        return len(self) == len(others) and (self.shared_with(others) == len(self) or list(self) == list(others))

    def __hash__(self) -> int:
        return hash((self._length, self._items[self._length - 1] if self._length else None))

    def __reduce__(self) -> Any:
        return Appended, (list(self),)

    def __repr__(self) -> str:
        return f"Appended({list(self)!r})"

    def _of(self, items: list[T], length: int) -> Self:
        made = type(self).__new__(type(self))
        made._items, made._length = items, length
        return made


_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that is not here any more may have held it


os.register_at_fork(after_in_child=_renew_lock)
