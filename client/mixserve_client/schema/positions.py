"""Positions, which are 64-bit integers that each name one row, and ranges of positions."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mixserve_client.errors import InvalidRequest, OutOfRange
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.text import show

POSITION_LIMIT = 2**63 - 1
POSITIONS_PER_REQUEST = 1 << 16

Positions = npt.NDArray[np.int64]
Range = tuple[int, int]  # start and size
Interval = tuple[int, int]  # from and to


def ranges_of(positions: Positions) -> list[Range]:
    """The fewest (start, size) ranges that give the positions (int64, at least one) in their order."""
    first = np.flatnonzero(np.diff(positions, prepend=positions[0]) != 1)
    sizes = np.diff(first, append=len(positions))
    return list(zip(positions[first].tolist(), sizes.tolist(), strict=True))


def check_any_positions(positions: Any) -> Positions:
    """The positions as an array, int64, one dimension.

    Raises InvalidRequest unless they are a list of at least one integer, all at least 0; OutOfRange beyond 2^63 - 2.
    """
    try:
        given = np.asarray(positions)
    except (TypeError, ValueError):
        given = np.empty(0, np.object_)
    # NumPy makes object arrays of integers beyond 64 bits.
    if given.ndim != 1 or not given.size or not (given.dtype.kind in "iu" or all(type(one) is int for one in given)):
        raise InvalidRequest(f"positions must be a list of at least one integer, got {show(positions, 200)}")
    least, most = int(given.min()), int(given.max())
    if least < 0:
        raise InvalidRequest(f"positions must be at least 0, got {show(least)}")
    if most >= POSITION_LIMIT:
        raise OutOfRange(f"positions must be at most 2^63 - 2, got {show(most)}; positions are 64-bit")
    return given.astype(np.int64)


def check_positions(start: Any, size: Any, size_limit: int | None = None, name: str = "size") -> tuple[int, int]:
    """`start` and `size` as ints.

    Raises InvalidRequest for a size outside 1..size_limit, a negative start, and values that are not integers;
    OutOfRange if start + size is above 2^63 - 1.
    """
    start, size = check_integer("start", start), check_integer(name, size)
    if size < 1 or (size_limit is not None and size > size_limit):
        allowed = "at least 1" if size_limit is None else f"in 1..{size_limit}"
        raise InvalidRequest(f"{name} must be {allowed}, got {show(size)}")
    if start < 0:
        raise InvalidRequest(f"start must be at least 0, got {show(start)}")
    if start + size > POSITION_LIMIT:
        raise OutOfRange(
            f"start + {name} must be at most 2^63 - 1, got {show(start)} + {show(size)}; positions are 64-bit"
        )
    return start, size


def check_intervals(name: str, given: Any) -> list[Interval]:
    """The pairs (from, to) in `given`, with 0 <= from < to. Raises InvalidRequest with the name."""
    try:
        pairs = [(check_integer(name, start), check_integer(name, stop)) for start, stop in given]
    except (TypeError, ValueError):
        raise InvalidRequest(f"{name} must be a list of pairs of integers (from, to), got {show(given, 200)}") from None
    for start, stop in pairs:
        if not 0 <= start < stop <= POSITION_LIMIT:
            raise InvalidRequest(f"{name} must have ranges with 0 <= from < to <= 2^63 - 1, got {show((start, stop))}")
    return pairs
