"""Which document of a record each token belongs to, and where in that document it is."""

import numpy as np
from jaxtyping import Bool, Int, Int32, Shaped

SegmentIds = Int32[np.ndarray, "size length"]
Positions = Int32[np.ndarray, "size length"]
_DTYPE = np.dtype(np.int32)


def segments_by_end(tokens: Shaped[np.ndarray, "size length"], end: int) -> tuple[SegmentIds, Positions]:
    """Of records in which the token `end` is the last one of a document. Numbers are from 1 in each record, positions
    from 0 in each of its segments."""
    size, length = tokens.shape
    after = np.flatnonzero(tokens.reshape(-1) == end) + 1
    firsts = np.concatenate([np.arange(size) * length, after[after % length != 0]])
    firsts.sort()
    return segments_from(firsts, (size, length))


def segments_from(
    firsts: Int[np.ndarray, " pieces"],
    shape: tuple[int, int],
    continues: Bool[np.ndarray, " pieces"] | None = None,
    padding: Bool[np.ndarray, " pieces"] | None = None,
) -> tuple[SegmentIds, Positions]:
    """Of records of the `shape` (size, length) that consist of pieces. `firsts` are the flat places where these begin,
    ascending; every record begins with one.

    A piece that `continues` the one before it in the same record belongs to its segment. Pieces of `padding`, at the
    end of records, have the number 0 and the positions 0.
    """
    size, length = shape
    rows, columns = np.divmod(firsts, length)
    sizes = np.diff(firsts, append=size * length)
    opens = np.ones(len(firsts), bool) if continues is None else ~continues | (columns == 0)
    counted = np.cumsum(opens)
    numbers = (counted - counted[np.searchsorted(rows, np.arange(size))][rows] + 1).astype(_DTYPE)
    begins = columns[np.flatnonzero(opens)[counted - 1]].astype(_DTYPE)
    if padding is not None:
        numbers[padding] = 0
    positions = np.repeat(begins, sizes).reshape(shape)
    np.subtract(np.arange(length, dtype=_DTYPE), positions, out=positions)
    segment_ids = np.repeat(numbers, sizes).reshape(shape)
    if padding is not None and padding.any():
        positions *= segment_ids > 0
    return segment_ids, positions
