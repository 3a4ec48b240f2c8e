"""Immutable sequences that can be extended at the same cost per item at any length, since they share memory."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, Self, TypeVar, cast, overload

T = TypeVar("T")


class Appended(Sequence[T], Generic[T]):
    """A view of the first items of a list to which other views may append; safe to use from many threads.

    Slices that begin at 0 are views of the same list.
    """

    __slots__ = ("_items", "_length")

    def __init__(self, items: Iterable[T] = ()):
        self._items = list(items)
        self._length = len(self._items)

    def followed_by(self, items: Iterable[T]) -> Self:
        """This sequence with `items` appended."""
        added = list(items)
        with _lock:
            # If another view has appended to the list, what follows this view is that one's: branch off with a copy.
            whole = self._items if len(self._items) == self._length else self._items[: self._length]
            whole.extend(added)
            return self._of(whole, self._length + len(added))

    def shared_with(self, other: "Appended[T]") -> int:
        """How many leading items are the same objects in both."""
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
            raise IndexError(f"index {place} is out of range: there are {self._length} items")
        return self._items[place % self._length]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Appended):
            return NotImplemented
        others = cast(Appended[Any], other)
        return len(self) == len(others) and (self.shared_with(others) == len(self) or list(self) == list(others))

    def __hash__(self) -> int:
        # Hashing all items would cost the length each time.
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
    _lock = threading.Lock()  # a thread that does not exist in this process may have held the old one


os.register_at_fork(after_in_child=_renew_lock)
