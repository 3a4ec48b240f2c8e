"""Ranges of positions that a reader leaves out; batches are made of the remaining positions."""

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mixserve_client.appended import Appended
from mixserve_client.schema.positions import POSITION_LIMIT, Interval, Range, check_intervals


@dataclass(frozen=True)
class Skips:
    """Ascending ranges (from, to) that do not touch each other; made by `of`."""

    ranges: Appended[Interval] = field(default_factory=Appended[Interval])

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles of older clients have a tuple. object.__setattr__ is how a frozen dataclass sets a field.
        object.__setattr__(self, "ranges", Appended(state["ranges"]))

    @classmethod
    def of(cls, given: Any) -> "Skips":
        """The union of the ranges in `given`, pairs (from, to) for [from, to). Raises InvalidRequest."""
        found = list[Interval]()
        for start, stop in sorted(check_intervals("skip", given)):
            if found and start <= found[-1][1]:
                start, stop = found[-1][0], max(stop, found.pop()[1])
            found.append((start, stop))
        return cls(Appended(found))

    def __or__(self, other: "Skips") -> "Skips":
        if self.ranges and other.ranges and other.ranges[0][0] > self.ranges[-1][1]:
            return Skips(self.ranges.followed_by(other.ranges))  # the cost does not grow with the number of ranges
        return Skips.of((*self.ranges, *other.ranges)) if other.ranges else self

    @cached_property
    def plain(self) -> list[list[int]]:
        """The ranges in plain JSON types."""
        return [list(one) for one in self.ranges]

    def first_from(self, position: int) -> int:
        """The first position from `position` on that is not skipped."""
        if not self.ranges:
            return position
        place = bisect_right(self.ranges, position, key=lambda one: one[0]) - 1
        return max(position, self.ranges[place][1]) if place >= 0 else position

    def border_after(self, position: int) -> int:
        """The first skipped position after `position`, which is not skipped itself."""
        place = bisect_right(self.ranges, position, key=lambda one: one[0])
        return self.ranges[place][0] if place < len(self.ranges) else POSITION_LIMIT

    def take(self, position: int, size: int, stop: int) -> tuple[list[Range], int]:
        """The first `size` positions in [position, stop) that are not skipped, or fewer at `stop`.

        Returns them as (start, size) ranges, and the position after the last one.
        """
        found, left = list[Range](), size
        while left and (start := self.first_from(position)) < stop:
            taken = min(left, self.border_after(start) - start, stop - start)
            found.append((start, taken))
            left, position = left - taken, start + taken
        return found, position
