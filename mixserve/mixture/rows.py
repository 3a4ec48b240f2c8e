"""Rows scattered over many arrays -> one array, at the same cost for one array as for a thousand.

NumPy gathers quickly from one array only, and joining the arrays would copy the data. So one view spans the memory of
all of them, from the lowest address to the highest. If all rows begin at multiples of some number of bytes, it is a
view of pieces of that size, and a row is one or more successive pieces; otherwise its element n is "the row that begins
at byte n". Memory between the rows is never touched.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from mixserve.sources.open_file import map_of

# Measured: from this size on it is faster to gather pieces, which takes one copy; elements at every byte take two.
_LEAST_PIECE_BYTES = 512
_CHUNK_BYTES = 128 << 10  # the first of these two copies goes to a buffer that stays in the CPU's cache
_LARGEST_ROW_BYTES = 32 << 10
_PAGE_BYTES = 4096


class Rows:
    """The rows of `blocks`: arrays of one dtype and row shape, each row C-contiguous and evenly spaced."""

    def __init__(self, blocks: Sequence[Shaped[np.ndarray, "rows ..."]]):
        self.dtype = blocks[0].dtype
        self._blocks = tuple(blocks)
        self._row_bytes = int(blocks[0][:0].itemsize * np.prod(blocks[0].shape[1:], dtype=np.int64))
        filled = [block for block in self._blocks if block.size]
        lowest = min((_span(block)[0] for block in filled), default=0)
        highest = max((_span(block)[1] for block in filled), default=0)
        self._bases = np.array([_address(block) - lowest if block.size else 0 for block in blocks], np.int64)
        self._strides = np.array([block.strides[0] for block in blocks], np.int64)
        self._memory: np.ndarray | None = None
        self._pieces: np.ndarray | None = None
        self._bytes: np.ndarray | None = None
        # Larger rows are copied in a loop: its cost does not show, and the view could exceed NumPy's largest array.
        if filled and self._row_bytes <= _LARGEST_ROW_BYTES:
            self._memory = _rows_at_every_byte(lowest, highest, self._row_bytes)
            piece_bytes = math.gcd(self._row_bytes, *self._bases.tolist(), *self._strides.tolist())
            if piece_bytes >= _LEAST_PIECE_BYTES:
                self._pieces = _pieces(lowest, highest, piece_bytes)
                self._piece_bases, self._piece_strides = self._bases // piece_bytes, self._strides // piece_bytes
            elif any(map_of(block) is not None for block in filled):
                self._bytes = _pieces(lowest, highest, 1)
                self._pages = np.unique([*range(0, self._row_bytes, _PAGE_BYTES), max(0, self._row_bytes - 1)])

    def copy_into(
        self, out: Shaped[np.ndarray, "size ..."], block_ids: Int[np.ndarray, " size"], rows: Int[np.ndarray, " size"]
    ) -> None:
        """out[i] = blocks[block_ids[i]][rows[i]], cast to `out`'s dtype; `out` is C-contiguous."""
        if self._memory is None:
            for i, (block_id, row) in enumerate(zip(block_ids.tolist(), rows.tolist(), strict=True)):
                out[i] = self._blocks[block_id][row]
            return
        if out.dtype == self.dtype and self._pieces is not None:
            self._copy_pieces(out, self._pieces, self._piece_bases[block_ids] + rows * self._piece_strides[block_ids])
        else:
            self._copy_rows(out, self._memory, self._bases[block_ids] + rows * self._strides[block_ids])

    def _copy_pieces(self, out: np.ndarray, pieces: np.ndarray, first: np.ndarray) -> None:
        per_row = self._row_bytes // pieces.itemsize
        index = first if per_row == 1 else (first[:, None] + np.arange(per_row)).reshape(-1)
        # Not to clip, as every index is in range: with mode="raise" NumPy fills a buffer of its own, and copies that.
        pieces.take(index, out=out.reshape(-1).view(np.uint8).view(pieces.dtype), mode="clip")

    def _copy_rows(self, out: np.ndarray, memory: np.ndarray, at: np.ndarray) -> None:
        if self._bytes is not None:
            # An indexed copy holds the interpreter's lock, while pages come from a disk too; `take` does not. So it
            # touches every page first. Measured: this costs nothing if they are in memory.
            np.take(self._bytes, (at[:, None] + self._pages).reshape(-1), mode="clip")
        same = out.dtype == self.dtype
        target = out.reshape(-1).view(np.uint8).view(memory.dtype) if same else out
        step = max(1, _CHUNK_BYTES // self._row_bytes)
        for first in range(0, len(at), step):
            chunk = memory[at[first : first + step]]
            if not same:
                chunk = chunk.view(self.dtype).reshape(-1, *out.shape[1:])
            target[first : first + step] = chunk


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _span(array: np.ndarray) -> tuple[int, int]:
    low, high = np.lib.array_utils.byte_bounds(array)
    return int(low), int(high)


class _Memory:
    # Not `as_strided`: no single array owns the memory between the blocks. `Rows` keeps the blocks alive.
    def __init__(self, interface: dict[str, Any]):
        self.__array_interface__ = interface


def _rows_at_every_byte(lowest: int, highest: int, row_bytes: int) -> np.ndarray:
    return _view(lowest, highest - lowest - row_bytes + 1, row_bytes, 1)


def _pieces(lowest: int, highest: int, piece_bytes: int) -> np.ndarray:
    return _view(lowest, (highest - lowest) // piece_bytes, piece_bytes, piece_bytes)


def _view(lowest: int, length: int, item_bytes: int, stride: int) -> np.ndarray:
    interface = {"data": (lowest, True), "shape": (length,), "strides": (stride,), "version": 3}
    return np.asarray(_Memory(interface | {"typestr": f"|V{item_bytes}"}))
