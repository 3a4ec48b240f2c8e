"""Weights, as shares of a mixture, and from which position on they hold."""

import functools
import operator
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from numbers import Real
from typing import NamedTuple

from mixserve_client.appended import Appended


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


class Schedule:
    """Entries with ascending starts, the first of them 0; a position has the shares of the last that begins before.

    Immutable. One that follows another shares its memory, so that an entry more costs the same at any length.
    """

    def __init__(self, entries: Iterable[Entry]):
        """Raises ValueError."""
        self.entries: Appended[Entry] = entries if isinstance(entries, Appended) else Appended(entries)
        starts = [entry.start for entry in self.entries]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"a schedule's entries must begin at 0 and ascend, got entries from {starts!r:.200}")

    def followed_by(self, entries: Sequence[Entry]) -> "Schedule":
        """This schedule before the first of `entries`, and those from there on. Raises ValueError."""
        kept = bisect_left(self.entries, entries[0].start, key=_start)
        if not kept:
            return Schedule(entries)
        Schedule([Entry(0, entries[0].shares), *entries])  # whether they ascend
        followed = Schedule.__new__(Schedule)
        followed.entries = self.entries[:kept].followed_by(entries)
        return followed

    def at(self, position: int) -> tuple[Entry, int | None]:
        """The entry that is in force at a position, and the start of the next one."""
        place = bisect_right(self.entries, position, key=_start)
        return self.entries[place - 1], self.entries[place].start if place < len(self.entries) else None

    def parts(self, start: int, stop: int) -> Iterator[tuple[Entry, int, int]]:
        """(entry, first, stop) of the parts of the positions [start, stop) that share an entry."""
        while start < stop:
            entry, border = self.at(start)
            last = stop if border is None else min(border, stop)
            yield entry, start, last
            start = last

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __repr__(self) -> str:
        return f"Schedule({list(self.entries)!r:.1000})"


def _start(entry: Entry) -> int:
    return entry.start
