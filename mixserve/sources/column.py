"""A column in pieces -> the served field of any records: fixed rows are gathered, ragged ones padded and cut."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mixserve.error_boundary import WrongRecord
from mixserve.sources.fields import Served, Stored
from mixserve.sources.memory import Indices, Memory, read_bits, touch

# Measured: up to this size it is faster to gather a row's values one by one, above it to copy it as a slice.
_GATHERED_BYTES = 64


class Piece(NamedTuple):
    """Where successive rows of a column lie: addresses in bytes, and numbers of values (of bits, if these are packed).

    A fixed row r has the values from `first + r * width` on, a ragged one those from `first + offsets[r] * width` to
    `first + offsets[r + 1] * width`; `width` is the number of values of the stored shape. A bitmap begins with the bit
    `..._first`, and its address is 0 if nothing is null.
    """

    rows: int
    values: int
    stored: int  # the number of values from the address `values` on
    first: int = 0
    offsets: int = 0  # of row 0; 0 if rows are fixed
    valid: int = 0  # the bitmap of rows
    valid_first: int = 0
    item_valid: int = 0  # the bitmap of values
    item_valid_first: int = 0


class Layout(NamedTuple):
    """How a column is stored: `dtype` is that of its values in memory, of which a bool may be a bit."""

    stored: Stored
    dtype: np.dtype
    bits: bool = False
    offsets: np.dtype | None = None

    @property
    def width(self) -> int:
        """The number of values of a fixed row, or of an item of a ragged one."""
        return math.prod(self.stored.shape)


class Rows(NamedTuple):
    """Records by the piece and the row in it."""

    pieces: Indices
    rows: Indices
    record_ids: Indices


class Column:
    """The rows of `pieces`, all of which lie in `memory`. Raises ValueError if a piece does not hold its rows."""

    def __init__(self, layout: Layout, pieces: Sequence[Piece], memory: Memory):
        self.layout = layout
        self._memory = memory
        self._width = layout.width
        table = np.array(pieces, np.int64).reshape(-1, len(Piece._fields))
        rows, values, stored, first, offsets, valid, valid_first, item_valid, item_valid_first = table.T
        if (rows < 0).any() or (first < 0).any():
            raise ValueError("a block has a negative number of rows or values")
        # Divided and not multiplied: the numbers of a damaged file may have a product of more than 64 bits.
        if layout.offsets is None and ((first > stored) | (rows > (stored - first) // self._width)).any():
            raise ValueError("a block holds fewer values than its rows need")
        begin = self._index(values - memory.lowest, layout.dtype, bits=layout.bits)
        self._first, self._end = begin + first, begin + stored
        self._items = memory.items(np.dtype(np.uint8) if layout.bits else layout.dtype)
        self._offsets, self._offsets_at = None, offsets
        if layout.offsets is not None:
            self._offsets = memory.items(layout.offsets)
            self._offsets_at = self._index(offsets - memory.lowest, layout.offsets, bits=False)
        self._rows = rows
        self._valid = _Bitmaps(memory, valid, valid_first)
        self._item_valid = _Bitmaps(memory, item_valid, item_valid_first, self._first - begin)

    @property
    def is_evenly_spaced(self) -> bool:
        """Whether rows can be copied as they are."""
        return not (self.layout.bits or self._offsets is not None or self._valid.any or self._item_valid.any)

    def blocks(self) -> list[np.ndarray]:
        """The rows of each piece, of a column that `is_evenly_spaced`."""
        row_bytes = self._width * self.layout.dtype.itemsize
        spans = zip((self._first * self.layout.dtype.itemsize).tolist(), self._rows.tolist(), strict=True)
        views = [(self._memory.view(at, rows * row_bytes), rows) for at, rows in spans]
        return [view.view(self.layout.dtype).reshape(rows, *self.layout.stored.shape) for view, rows in views]

    def positions(self, at: Rows) -> tuple[Indices, Indices]:
        """The byte positions in memory at which the values of the rows begin, and their sizes in bytes."""
        first, counts = self._values(at)
        if self.layout.bits:
            return first // 8, -(-counts // 8)
        return first * self._items.itemsize, counts * self._items.itemsize

    def lengths(self, pieces: slice = slice(None)) -> Indices:
        """The number of items of every row of a ragged column."""
        assert self._offsets is not None
        spans = zip(self._offsets_at[pieces].tolist(), self._rows[pieces].tolist(), strict=True)
        parts = [np.diff(self._offsets[at : at + rows + 1]) for at, rows in spans]
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def join(self, null: float | None) -> tuple[np.ndarray, Indices]:
        """All values of a ragged column, one row after another, and the numbers of values of the rows. Null values
        become `null`. Raises WrongRecord for impossible offsets."""
        pieces = np.repeat(np.arange(len(self._rows)), self._rows)
        rows = np.concatenate([np.arange(count) for count in self._rows.tolist()] or [np.arange(0)])
        first, counts = self._values(Rows(pieces, rows, rows))
        if self._valid.any:
            counts = np.where(self._valid.get(pieces, rows), counts, 0)
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        if not self.layout.bits and not self._item_valid.any and (first[1:] == first[:-1] + counts[:-1]).all():
            begin = int(first[0]) if total else 0
            return self._items[begin : begin + total], counts
        index = np.repeat(first - (ends - counts), counts) + np.arange(total)
        values = read_bits(self._items, index) if self.layout.bits else np.take(self._items, index, mode="clip")
        if self._item_valid.any:
            owners = np.repeat(pieces, counts)
            values[~self._item_valid.get(owners, index - self._first[owners])] = null
        return values, counts

    def take(self, served: Served, at: Rows) -> dict[str, np.ndarray]:
        """The served field of the rows, and that of its lengths if it has one. Raises WrongRecord."""
        first, counts = self._values(at)
        if self._offsets is None:
            made = self._fill(np.empty((len(first), self._width), served.dtype), first, counts)
            return {served.spec.name: self._replace_nulls(made, served, at, first, counts).reshape(-1, *served.shape)}
        return self._take_ragged(served, at, first, counts)

    def _take_ragged(self, served: Served, at: Rows, first: Indices, counts: Indices) -> dict[str, np.ndarray]:
        lengths = counts // self._width
        if self._valid.any:  # a null list has no items, whatever its offsets say
            lengths = np.where(self._valid.get(at.pieces, at.rows), lengths, 0)
        room = served.shape[0]
        if len(lengths) and lengths.max() > room:
            worst = int(np.argmax(lengths > room))
            served.check_length(int(lengths[worst]), int(at.record_ids[worst]))
            lengths = np.minimum(lengths, room)
        counts = lengths * self._width
        out = np.full((len(first), room * self._width), served.spec.pad, served.dtype)
        made = self._replace_nulls(self._fill(out, first, counts), served, at, first, counts)
        found = {served.spec.name: made.reshape(-1, *served.shape)}
        if served.spec.lengths is not None:
            found[served.spec.lengths] = lengths.astype(np.int32)
        return found

    def _values(self, at: Rows) -> tuple[Indices, Indices]:
        """The first value of each row, and how many there are. Raises WrongRecord for impossible offsets."""
        begin = self._first[at.pieces]
        if self._offsets is None:
            return begin + at.rows * self._width, np.full(len(begin), self._width)
        place = self._offsets_at[at.pieces] + at.rows
        start, stop = (np.take(self._offsets, place + i, mode="clip").astype(np.int64) for i in (0, 1))
        # In a damaged file offsets may be anything, and must not lead out of the mapped memory.
        room = self._end[at.pieces] - begin
        if not ((start >= 0) & (start <= stop) & (stop <= room // self._width)).all():
            worst = int(np.argmin((start >= 0) & (start <= stop) & (stop <= room // self._width)))
            raise WrongRecord(
                f"record {at.record_ids[worst]} lies from value {start[worst]} to {stop[worst]} of the {room[worst]} "
                "that are stored there: the file is damaged"
            )
        return begin + start * self._width, (stop - start) * self._width

    def _fill(self, out: np.ndarray, first: Indices, counts: Indices) -> np.ndarray:
        """Write the values into the first places of the rows of `out`."""
        if self.layout.bits:
            index, is_in = _matrix(first, counts, out.shape[1])
            np.copyto(out, read_bits(self._items, index).astype(out.dtype), where=is_in)
        elif self._offsets is None and self._width * self._items.itemsize <= _GATHERED_BYTES:
            out[:] = np.take(self._items, first[:, None] + np.arange(self._width), mode="clip")
        else:
            touch(self._items, first, counts)
            items = self._items
            for row, start, count in zip(out, first.tolist(), counts.tolist(), strict=True):
                row[:count] = items[start : start + count]
        return out

    def _replace_nulls(self, out: np.ndarray, served: Served, at: Rows, first: Indices, counts: Indices) -> np.ndarray:
        """Write `null` over the null values, and over all values of null rows if these are fixed."""
        if self._valid.any and self._offsets is None:
            out[~self._valid.get(at.pieces, at.rows)] = served.spec.null
        if self._item_valid.any:
            index, is_in = _matrix(first, counts, out.shape[1])
            is_valid = self._item_valid.get(at.pieces, index - self._first[at.pieces][:, None])
            out[is_in & ~is_valid] = served.spec.null
        return out

    @staticmethod
    def _index(position: Indices, dtype: np.dtype, *, bits: bool) -> Indices:
        if bits:
            return position * 8
        if (position % dtype.itemsize).any():
            raise ValueError(f"a block's values of {dtype} do not begin at a multiple of {dtype.itemsize} bytes")
        return position // dtype.itemsize


class _Bitmaps:
    """The bits of rows or values by piece; they are all set in pieces without a bitmap."""

    def __init__(self, memory: Memory, addresses: Indices, first: Indices, base: Indices | int = 0):
        self._has = addresses != 0
        self.any = bool(self._has.any())
        self._packed = memory.items(np.dtype(np.uint8))
        self._first = np.where(self._has, (addresses - memory.lowest) * 8 + first + base, 0)

    def get(self, pieces: Indices, index: Indices) -> npt.NDArray[np.bool_]:
        """The bits of these numbers in these pieces; `index` may have a second axis."""
        has = self._has[pieces].reshape(-1, *[1] * (index.ndim - 1))
        first = self._first[pieces].reshape(has.shape)
        return read_bits(self._packed, np.where(has, first + index, 0)) | ~has


def _matrix(first: Indices, counts: Indices, columns: int) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Indices of the values of rows, of shape (rows, columns), and which of these are in the row."""
    column = np.arange(columns)
    is_in = column < counts[:, None]
    return np.where(is_in, first[:, None] + column, 0), is_in
