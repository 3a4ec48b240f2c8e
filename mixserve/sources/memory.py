"""Arrays wherever they lie in memory, maps of files mostly, read by position as if they were one array."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
_PAGE_BYTES = 4096
_ALIGNMENT = 64


class Memory:
    """The memory of `owners`, which are arrays of bytes.

    Positions in it are bytes from `lowest`, an address that no owner begins below. What lies between the owners is
    never touched: callers pass only positions inside of them.
    """

    def __init__(self, owners: Sequence[np.ndarray]):
        filled = [owner for owner in owners if owner.nbytes] or [np.zeros(_ALIGNMENT, np.uint8)]
        self._owners = sorted(filled, key=address_of)
        self.lowest = address_of(self._owners[0]) // _ALIGNMENT * _ALIGNMENT
        self._starts = np.array([address_of(owner) - self.lowest for owner in self._owners], np.int64)
        self._bytes = max(int(at) + owner.nbytes for at, owner in zip(self._starts, self._owners, strict=True))

    def items(self, dtype: np.dtype) -> np.ndarray:
        """The memory as items of `dtype`: the one at the position p has the index p / itemsize."""
        interface = {"data": (self.lowest, True), "shape": (self._bytes // dtype.itemsize,), "version": 3}
        return np.asarray(_View(interface | {"typestr": dtype.str}, self._owners))

    def view(self, position: int, size: int) -> np.ndarray:
        """These bytes, as a view of their owner."""
        owner, at = self.owner(np.array([position]))
        return self._owners[int(owner[0])][int(at[0]) : int(at[0]) + size]

    def owner(self, positions: Indices) -> tuple[Indices, Indices]:
        """The numbers of the owners, sorted by address, that have these positions, and the positions in them."""
        found = np.maximum(np.searchsorted(self._starts, positions, side="right") - 1, 0)
        return found, positions - self._starts[found]

    @property
    def owners(self) -> Sequence[np.ndarray]:
        """The owners that have bytes, sorted by address."""
        return self._owners


class _View:
    # Not `as_strided`: no single array owns the memory between the owners. An array of it keeps this object, and the
    # owners, alive.
    def __init__(self, interface: dict[str, Any], owners: Sequence[np.ndarray]):
        self.__array_interface__, self._owners = interface, owners


def address_of(array: np.ndarray) -> int:
    """The address of the array's first byte."""
    return int(array.__array_interface__["data"][0])


def touch(items: np.ndarray, first: Indices, counts: Indices) -> None:
    """Read one item of each page of the ranges [first, first + count), so that they are in memory.

    `np.take` lets go of the interpreter's lock while pages come in from the disk; copies of slices do not.
    """
    filled = counts > 0
    first, last = first[filled], (counts - 1)[filled]
    if len(first):
        step = max(1, _PAGE_BYTES // items.itemsize)
        steps = np.append(np.arange(0, int(last.max()), step), np.iinfo(np.int64).max)
        np.take(items, first[:, None] + np.minimum(steps, last[:, None]), mode="clip")


def read_bits(packed: np.ndarray, index: Indices) -> npt.NDArray[np.bool_]:
    """The bits of these numbers; in a byte the lowest bit comes first."""
    taken = np.take(packed, index >> 3, mode="clip")
    return (taken >> (index & 7).astype(np.uint8) & np.uint8(1)).view(np.bool_)
