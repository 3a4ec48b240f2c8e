"""Ranges of positions that a reader leaves out: batches are made of the positions that stay."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mixserve_client.appended import Appended
from mixserve_client.errors import InvalidRequest
from mixserve_client.wire.request import POSITION_LIMIT, check_integer
from mixserve_client.wire.shown import shown

Range = tuple[int, int]  # from, to


@dataclass(frozen=True)
class Skips:
    """Ranges that ascend and do not touch; made by `of`."""

    ranges: Appended[Range] = field(default_factory=Appended[Range])

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles of older clients have a tuple.
        object.__setattr__(self, "ranges", Appended(state["ranges"]))

    @classmethod
    def of(cls, given: Any) -> "Skips":
        """The union of the ranges in `given`, pairs (from, to) that leave out [from, to). Raises InvalidRequest."""
        found = list[Range]()
        for start, stop in sorted(_checked(given)):
            if found and start <= found[-1][1]:
                start, stop = found[-1][0], max(stop, found.pop()[1])
            found.append((start, stop))
        return cls(Appended(found))

    def __or__(self, other: "Skips") -> "Skips":
        if self.ranges and other.ranges and other.ranges[0][0] > self.ranges[-1][1]:
            return Skips(self.ranges.followed_by(other.ranges))  # at the same cost however many there are
        return Skips.of((*self.ranges, *other.ranges)) if other.ranges else self

    @cached_property
    def plain(self) -> list[list[int]]:
        """The ranges in plain JSON types."""
        return [list(one) for one in self.ranges]

    def first_from(self, position: int) -> int:
        """The first position at or behind `position` that stays."""
        if not self.ranges:
            return position
        place = bisect_right(self.ranges, position, key=lambda one: one[0]) - 1
        return max(position, self.ranges[place][1]) if place >= 0 else position

    def border_after(self, position: int) -> int:
        """The first position behind `position`, which stays, that does not."""
        place = bisect_right(self.ranges, position, key=lambda one: one[0])
        return self.ranges[place][0] if place < len(self.ranges) else POSITION_LIMIT

    def taken(self, position: int, size: int, stop: int) -> tuple[list[Range], int]:
        """Up to `size` positions that stay in [position, stop), as (start, size) ranges, and the position behind
        them."""
        found, left = list[Range](), size
        while left and (start := self.first_from(position)) < stop:
            taken = min(left, self.border_after(start) - start, stop - start)
            found.append((start, taken))
            left, position = left - taken, start + taken
        return found, position


def part(ranges: Iterable[Range], offset: int, rows: int) -> list[Range]:
    """The rows [offset, offset + rows) of what the (start, size) ranges hold one after another."""
    found = list[Range]()
    for start, size in ranges:
        first, last = max(0, offset), min(size, offset + rows)
        if first < last:
            found.append((start + first, last - first))
        offset -= size
    return found


def _checked(given: Any) -> list[Range]:
    try:
        pairs = [(check_integer("skip", start), check_integer("skip", stop)) for start, stop in given]
    except (TypeError, ValueError):
        raise InvalidRequest(f"skip must be a list of pairs of integers (from, to), got {shown(given, 200)}") from None
    for start, stop in pairs:
        if not 0 <= start < stop <= POSITION_LIMIT:
            raise InvalidRequest(f"skip must have ranges with 0 <= from < to <= 2^63 - 1, got {shown((start, stop))}")
    return pairs
