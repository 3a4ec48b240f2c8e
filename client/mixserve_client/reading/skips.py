"""Ranges of positions that a reader leaves out: batches are made of the positions that stay."""

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mixserve_client.appended import Appended
from mixserve_client.schema.positions import POSITION_LIMIT, Interval, Range, check_intervals


@dataclass(frozen=True)
class Skips:
    """Ranges that ascend and do not touch; made by `of`."""

    ranges: Appended[Interval] = field(default_factory=Appended[Interval])

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles of older clients have a tuple.
        object.__setattr__(self, "ranges", Appended(state["ranges"]))

    @classmethod
    def of(cls, given: Any) -> "Skips":
        """The union of the ranges in `given`, pairs (from, to) that leave out [from, to). Raises InvalidRequest."""
        found = list[Interval]()
        for start, stop in sorted(check_intervals("skip", given)):
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

    def take(self, position: int, size: int, stop: int) -> tuple[list[Range], int]:
        """Up to `size` positions that stay in [position, stop), as (start, size) ranges, and the position behind
        them."""
        found, left = list[Range](), size
        while left and (start := self.first_from(position)) < stop:
            taken = min(left, self.border_after(start) - start, stop - start)
            found.append((start, taken))
            left, position = left - taken, start + taken
        return found, position
