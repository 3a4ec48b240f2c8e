"""Numbers of records of several files, one after another -> files and rows in them."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class FileGroup(NamedTuple):
    """The records of a batch that lie in the file `number`: their `rows` in it, and their `places` in the batch."""

    number: int
    rows: list[int]
    places: list[int]


class FileRows:
    """Where the records of files lie that have `counts` records."""

    def __init__(self, counts: Sequence[int]):
        """Raises ValueError if they have 2^63 records or more in all."""
        if sum(counts) >= 1 << 63:
            raise ValueError(f"the files have {sum(counts):,} records in all, and a source may have 2^63 - 1")
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._firsts = self._ends - np.asarray(counts, np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def place(self, record_id: int) -> tuple[int, int]:
        """The number of the file, and the row in it."""
        number = int(np.searchsorted(self._ends, record_id, side="right"))
        return number, record_id - int(self._firsts[number])

    def first(self, number: int) -> int:
        """The number of the first record of a file."""
        return int(self._firsts[number])

    def find(self, record_ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The numbers of the files of these records, and their rows in them."""
        ids = np.asarray(record_ids, np.int64)
        numbers = np.searchsorted(self._ends, ids, side="right")
        return numbers.tolist(), (ids - self._firsts[numbers]).tolist()

    def group(self, record_ids: Sequence[int]) -> Iterator[FileGroup]:
        """The records, grouped by file."""
        ids = np.asarray(record_ids, np.int64)
        numbers = np.searchsorted(self._ends, ids, side="right")
        order = np.argsort(numbers, kind="stable")
        borders = np.flatnonzero(np.diff(numbers[order], prepend=-1, append=-1)).tolist()
        for begin, end in pairwise(borders):
            places = order[begin:end]
            number = int(numbers[places[0]])
            yield FileGroup(number, (ids[places] - self._firsts[number]).tolist(), places.tolist())
