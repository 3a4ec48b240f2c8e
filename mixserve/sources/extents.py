"""Records that follow one another in files -> where each lies, and its bytes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mixserve.sources.file_rows import FileRows
from mixserve.sources.open_file import OpenFile, read_ranges


class Extents:
    """Where the records of `files` lie: `borders` has, of each file, where its records begin, and at last where the
    last one ends."""

    def __init__(self, files: Sequence[OpenFile], borders: Sequence[npt.NDArray[np.integer]]):
        self.files = files
        self._rows = FileRows([len(of_file) - 1 for of_file in borders])
        # Not joined, since large indices are maps of files. `item` costs a fifth of what indexing a map does.
        self._border = [of_file.view(np.ndarray).item for of_file in borders]

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, record_id: int) -> tuple[OpenFile, int, int]:
        """The file of a record, the row in it, and its first byte."""
        number, row = self._rows.place(record_id)
        return self.files[number], row, self._border[number](row)

    def read(self, record_ids: Sequence[int]) -> list[bytes]:
        """The bytes of these records, in this order. Raises SourceChanged if a file no longer has them."""
        return read_ranges(*self._find(record_ids))

    def announce(self, record_ids: Sequence[int]) -> None:
        """Ask the system to read the bytes of these records soon."""
        for file, begin, size in zip(*self._find(record_ids), strict=True):
            file.announce(begin, size)

    def _find(self, record_ids: Sequence[int]) -> tuple[list[OpenFile], list[int], list[int]]:
        """Of each record its file, its first byte and its size."""
        numbers, rows = self._rows.find(record_ids)
        border = self._border
        begins = [border[number](row) for number, row in zip(numbers, rows, strict=True)]
        ends = [border[number](row + 1) for number, row in zip(numbers, rows, strict=True)]
        sizes = [end - begin for begin, end in zip(begins, ends, strict=True)]
        return [self.files[number] for number in numbers], begins, sizes
