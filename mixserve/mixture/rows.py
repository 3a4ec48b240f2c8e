"""Rows that lie scattered over many arrays -> one array, at the same cost for one array as for a thousand.

NumPy gathers quickly from one array only, and joining the arrays would copy the data. So all of them are seen as one
array of bytes from the lowest address to the highest, in which "the row at byte n" is an element like any other.
Elements that no row begins at are never touched.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

_CHUNK_BYTES = 128 << 10  # rows pass through a buffer that stays in the cache
_LARGEST_ROW_BYTES = 32 << 10


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
        # Beyond this size a loop costs nothing that shows, and the view could exceed NumPy's largest array.
        if filled and self._row_bytes <= _LARGEST_ROW_BYTES:
            self._memory = _rows_at_every_byte(lowest, highest, self._row_bytes)

    def copy_into(
        self, out: Shaped[np.ndarray, "size ..."], block_ids: Int[np.ndarray, " size"], rows: Int[np.ndarray, " size"]
    ) -> None:
        """out[i] = blocks[block_ids[i]][rows[i]], cast to `out`'s dtype; `out` is C-contiguous."""
        if self._memory is None:
            for i, (block_id, row) in enumerate(zip(block_ids.tolist(), rows.tolist(), strict=True)):
                out[i] = self._blocks[block_id][row]
            return
        at = self._bases[block_ids] + rows * self._strides[block_ids]
        same = out.dtype == self.dtype
        target = out.reshape(-1).view(np.uint8).view(self._memory.dtype) if same else out
        step = max(1, _CHUNK_BYTES // self._row_bytes)
        for first in range(0, len(at), step):
            chunk = self._memory[at[first : first + step]]
            if not same:
                chunk = chunk.view(self.dtype).reshape(-1, *out.shape[1:])
            target[first : first + step] = chunk


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _span(array: np.ndarray) -> tuple[int, int]:
    low, high = np.lib.array_utils.byte_bounds(array)
    return int(low), int(high)


class _Memory:
    def __init__(self, interface: dict[str, Any]):
        self.__array_interface__ = interface


def _rows_at_every_byte(lowest: int, highest: int, row_bytes: int) -> np.ndarray:
    return np.asarray(
        _Memory(
            {
                "data": (lowest, True),
                "shape": (highest - lowest - row_bytes + 1,),
                "strides": (1,),
                "typestr": f"|V{row_bytes}",
                "version": 3,
            }
        )
    )
