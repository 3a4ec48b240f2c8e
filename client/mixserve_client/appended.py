"""Immutable sequences that can be extended at the same cost per item at any length, since they share memory."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Generic, Self, TypeVar, cast, overload

T = TypeVar("T")

# A power of two near the square root of the most items that a schedule may have. So neither the copy of a block nor the
# list of all blocks is long.
BLOCK = 1024
_SHIFT, _WITHIN = BLOCK.bit_length() - 1, BLOCK - 1


class Appended(Sequence[T], Generic[T]):
    """A view of the first items of a list to which other views may append; safe to use from many threads.

    Slices that begin at 0 are views of the same list. The list lies in blocks of 1,024 items, so that a second view
    that appends at the same place, or before it, copies one block and shares all before it.
    """

    __slots__ = ("_full", "_last", "_length")

    def __init__(self, items: Iterable[T] = ()):
        listed = list(items)
        full = len(listed) >> _SHIFT
        self._full: tuple[list[T], ...] = tuple(listed[at << _SHIFT : at + 1 << _SHIFT] for at in range(full))
        self._last: list[T] = listed[full << _SHIFT :]  # may have more items than this view; those are of other views
        self._length = len(listed)

    def followed_by(self, items: Iterable[T]) -> Self:
        """This sequence with `items` appended."""
        added = list(items)
        with _lock:
            within, length = self._length & _WITHIN, self._length + len(added)
            # If another view has appended to the block, what follows this view is that one's: branch off with a copy.
            last = self._last if len(self._last) == within else self._last[:within]
            taken = BLOCK - within
            last.extend(added[:taken])
            if len(added) < taken:
                return self._of(self._full, last, length)
            rest = [added[at : at + BLOCK] for at in range(taken, len(added), BLOCK)]
            over = rest.pop() if length & _WITHIN else []
            return self._of((*self._full, last, *rest), over, length)

    def shared_with(self, other: "Appended[T]") -> int:
        """How many leading items both are known to share: at least those of views of the same list."""
        most = min(len(self), len(other))
        for at in range(0, most, BLOCK):
            mine, others = self._block(at >> _SHIFT), other._block(at >> _SHIFT)
            if mine is not others:  # the last one that they share, or the same items twice
                here = min(BLOCK, most - at)
                same = next((place for place in range(here) if mine[place] is not others[place]), here)
                if same < here:
                    return at + same
        return most

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(identity, number of items) of each block of memory, as long as this view lives."""
        for block in self._full:
            yield id(block), BLOCK
        if self._length & _WITHIN:
            yield id(self._last), self._length & _WITHIN

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return chain(*self._full, islice(self._last, self._length & _WITHIN))

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "Appended[T]": ...

    def __getitem__(self, place: int | slice) -> "T | Appended[T]":
        if isinstance(place, slice):
            start, stop, step = place.indices(self._length)
            if (start, step) == (0, 1):
                full = stop >> _SHIFT
                return self if stop == self._length else self._of(self._full[:full], self._block(full), stop)
            return Appended(self[at] for at in range(start, stop, step))
        if not -self._length <= place < self._length:
            raise IndexError(f"index {place} is out of range: there are {self._length} items")
        place %= self._length
        number = place >> _SHIFT
        return (self._full[number] if number < len(self._full) else self._last)[place & _WITHIN]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Appended):
            return NotImplemented
        others = cast(Appended[Any], other)
        return len(self) == len(others) and (self.shared_with(others) == len(self) or list(self) == list(others))

    def __hash__(self) -> int:
        # Hashing all items would cost the length each time.
        return hash((self._length, self[-1] if self._length else None))

    def __reduce__(self) -> Any:
        return Appended, (list(self),)

    def __repr__(self) -> str:
        return f"Appended({list(self)!r})"

    def _block(self, number: int) -> list[T]:
        return self._full[number] if number < len(self._full) else self._last

    def _of(self, full: tuple[list[T], ...], last: list[T], length: int) -> Self:
        made = type(self).__new__(type(self))
        made._full, made._last, made._length = full, last, length
        return made


_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that does not exist in this process may have held the old one


os.register_at_fork(after_in_child=_renew_lock)
