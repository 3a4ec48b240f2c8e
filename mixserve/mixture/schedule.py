"""Weights, as shares of a mixture, and from which position on they hold."""

import functools
import operator
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Real
from typing import NamedTuple


class Shares(tuple[float, ...]):
    """Weights as float64 shares that sum to 1, as far as floats do; a share is never normalised twice."""

    __slots__ = ()


def normalised(weights: Sequence[float]) -> Shares:
    """The weights as shares. Raises ValueError."""
    if isinstance(weights, Shares):
        return weights
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, Real):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"weights must be numbers, got {weight!r}")
        if not abs(weight) <= sys.float_info.max or weight < 0:
            raise ValueError(f"weights must be positive or zero, and finite, got {weight!r} in {tuple(weights)}")
    # From left to right: `sum` compensates rounding from Python 3.12 on, and shares must not depend on that.
    total = functools.reduce(operator.add, map(float, weights), 0.0)
    if not 0 < total <= sys.float_info.max:
        raise ValueError(f"weights must have a positive, finite sum, got {tuple(weights)}")
    return Shares(float(weight) / total for weight in weights)


class Entry(NamedTuple):
    """The shares that hold from position `start` on."""

    start: int
    shares: Shares


@dataclass(frozen=True)
class Schedule:
    """Entries with ascending starts, the first of them 0; a position has the shares of the last that begins before."""

    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        starts = [entry.start for entry in self.entries]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"a schedule's entries must begin at 0 and ascend, got entries from {starts}")

    def followed_by(self, entries: Sequence[Entry]) -> "Schedule":
        """This schedule before the first of `entries`, and those from there on."""
        kept = (entry for entry in self.entries if entry.start < entries[0].start)
        return Schedule((*kept, *entries))

    def parts(self, start: int, stop: int) -> Iterator[tuple[Entry, int, int]]:
        """(entry, first, stop) of the parts of the positions [start, stop) that share an entry."""
        place = bisect_right(self._starts, start) - 1
        while start < stop:
            border = self._starts[place + 1] if place + 1 < len(self._starts) else stop
            yield self.entries[place], start, min(border, stop)
            start, place = border, place + 1

    @cached_property
    def _starts(self) -> list[int]:
        return [entry.start for entry in self.entries]
