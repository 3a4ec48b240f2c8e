"""The largest id of stored tokens, and whether all are below a vocabulary's size: of a sample, or of all."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mixserve.sources.digest import spread

_CHUNK_BYTES = 1 << 20  # stays in the CPU's cache


def largest_id(
    arrays: Sequence[np.ndarray], vocab_size: int | None, locate: Callable[[int], str], *, full: bool
) -> int | None:
    """The largest number in the rows of the `arrays`, None if they hold no integers: of all rows if `full`, else of 64
    spread pieces of 64 KiB.

    `locate` says where a row lies; rows are counted through all arrays. Raises ValueError for ids that are not in
    [0, `vocab_size`).
    """
    if arrays[0].dtype.kind not in "iu":
        if vocab_size is not None:
            raise ValueError(f"vocab_size: the tokens must be integers to be checked, and are {arrays[0].dtype}")
        return None
    largest = 0
    for row, chunk in _chunks(arrays, full=full):
        largest = max(largest, int(chunk.max()))
        if vocab_size is not None and (largest >= vocab_size or int(chunk.min()) < 0):
            at = np.argwhere((chunk >= vocab_size) | (chunk < 0))[0]
            place = f" and {at[1]:,} tokens on" if len(at) > 1 else ""
            raise ValueError(
                f"vocab_size: ids must be in [0, {vocab_size:,}), got {chunk[tuple(at)]} ({locate(row + int(at[0]))}"
                f"{place}); is dtype that of the file?"
            )
    return largest


def _chunks(arrays: Sequence[np.ndarray], *, full: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Some successive rows at a time, with the number of the first."""
    starts = np.cumsum([0, *map(len, arrays)])
    total, row_bytes = int(starts[-1]), arrays[0].itemsize * math.prod(arrays[0].shape[1:])
    step = max(1, _CHUNK_BYTES // row_bytes)
    for first, size in [(0, total)] if full else spread(total, row_bytes):
        while size > 0:
            number = int(np.searchsorted(starts, first, side="right")) - 1
            part = min(size, step, int(starts[number + 1]) - first)
            row = first - int(starts[number])
            yield first, arrays[number][row : row + part]
            first, size = first + part, size - part
