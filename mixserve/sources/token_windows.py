"""Flat arrays of tokens -> windows of one length, as rows of arrays that are views of them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mixserve.sources.array_source import ArraySource
from mixserve.sources.open_file import OpenFile, file_of
from mixserve.sources.source import RecordIds


class Part(NamedTuple):
    """The tokens of one input, and the name of it for errors."""

    label: str
    tokens: np.ndarray


class Windows:
    """Record r is the tokens [r*S, r*S + L) of all parts, one after another, or of each part if not `joined`.

    L is `length` and S `stride`, at most L. Tokens after the last whole window are left out.
    """

    def __init__(self, parts: Sequence[Part], field: str, length: int, stride: int, *, joined: bool = True):
        """Raises ValueError if there is not one whole window."""
        arrays = [part.tokens for part in parts]
        self.length, self.stride = length, stride
        cuts = [arrays] if joined else [[array] for array in arrays]
        blocks = [list(_blocks(cut, length, stride)) for cut in cuts]
        # Not the parts themselves: a pickle would hold their tokens twice.
        self._labels = [part.label for part in parts]
        # Where each part begins: the token among all if the parts are joined, else the record.
        counts = map(len, arrays) if joined else (sum(map(len, of_part)) for of_part in blocks)
        self._starts, self._joined = np.cumsum([0, *counts]), joined
        if not any(blocks):
            refuse_too_few(parts, length)
        self.rows = ArraySource(*({field: block} for of_cut in blocks for block in of_cut))
        self._field = field

    @classmethod
    def of_rows(cls, rows: ArraySource, inputs: Sequence[tuple[str, int]]) -> "Windows":
        """Windows that are cut already, of inputs with these labels and numbers of tokens."""
        windows = cls.__new__(cls)
        ((windows._field, spec),) = rows.element_spec().items()
        windows.rows, windows.length, windows.stride = rows, spec.shape[0], spec.shape[0]
        windows._labels = [label for label, _ in inputs]
        windows._starts, windows._joined = np.cumsum([0, *(count for _, count in inputs)]), True
        return windows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, record_ids: RecordIds) -> np.ndarray:
        """The records: (size, length), in the stored dtype."""
        return self.rows.take(record_ids)[self._field]

    def locate(self, record_id: int) -> str:
        """The part, and the token in it at which the record begins."""
        at = record_id * self.stride if self._joined else record_id
        number = int(np.searchsorted(self._starts, at, side="right")) - 1
        if record_id >= len(self):
            raise IndexError(f"record_id must be below {len(self)}, got {record_id}")
        token = (at - int(self._starts[number])) * (1 if self._joined else self.stride)
        return f"{self._labels[number]}, token {token:,}"

    @property
    def arrays(self) -> list[np.ndarray]:
        """The rows, in record order, as arrays of windows."""
        return [next(iter(block.values())) for block in self.rows.blocks()]

    def files(self) -> list[OpenFile]:
        """The files that the windows are views of."""
        return [found[0] for found in map(file_of, self.arrays) if found]

    def prefetch(self, record_ids: RecordIds) -> None:
        """Ask the system to read these records soon."""
        arrays = self.arrays
        starts = np.cumsum([0, *map(len, arrays)])
        numbers = np.searchsorted(starts, record_ids, side="right") - 1
        found = {number: file_of(arrays[number]) for number in np.unique(numbers).tolist()}
        for number, row in zip(numbers.tolist(), (record_ids - starts[numbers]).tolist(), strict=True):
            if (at := found[number]) is not None:  # windows across borders are copies
                file, offset = at
                file.announce(offset + row * arrays[number].strides[0], self.length * arrays[number].itemsize)


def refuse_too_few(parts: Sequence[Part], length: int) -> None:
    """Raises ValueError: the parts have too few tokens for a window."""
    count = sum(len(part.tokens) for part in parts)
    raise ValueError(f"the inputs hold {count} tokens, less than one window of {length}")


def _blocks(arrays: Sequence[np.ndarray], length: int, stride: int) -> Iterator[np.ndarray]:
    """Blocks of windows over the arrays, one after another: a view of each array, and between them views of copies of
    the tokens at the border."""
    head = np.empty(0, arrays[0].dtype)  # the tokens from the beginning of a window on that ends in a later array
    for array in arrays:
        start = 0
        if len(head):
            # Up to the end of the last window that begins before this array.
            end = (len(head) - 1) // stride * stride + length - len(head)
            joined = np.concatenate([head, array[:end]])
            across = _windows(joined, length, stride)
            if len(across):
                yield across
            if len(array) < end:
                head = joined[len(across) * stride :]
                continue
            start = len(across) * stride - len(head)
        inside = _windows(array[start:], length, stride)
        if len(inside):
            yield inside
        head = array[start + len(inside) * stride :]


def _windows(array: np.ndarray, length: int, stride: int) -> np.ndarray:
    """The whole windows of `array`, as a view."""
    count = max(0, (len(array) - length) // stride + 1)
    if stride == length:
        return array[: count * length].reshape(count, length)
    if count == 0:
        return np.empty((0, length), array.dtype)
    # Not `as_strided`: it hides the array that the view is of, by which the file is found.
    strides = (stride * array.itemsize, array.itemsize)
    return np.ndarray((count, length), array.dtype, array.view(np.uint8), strides=strides)
