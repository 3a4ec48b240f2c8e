"""Weights, as shares of a mixture, and the positions from which they hold."""

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
    """Weights as float64 shares whose sum is 1, up to rounding.

    The type marks what is normalised: dividing by a sum that is not exactly 1 again could change a bit of a share, and
    with it the fingerprint.
    """

    __slots__ = ()


def normalised(weights: Sequence[float]) -> Shares:
    """The weights as shares. Raises ValueError unless all are finite and at least 0, and their sum is positive."""
    if isinstance(weights, Shares):
        return weights
    for weight in weights:
        # Floats first, since a look at Real takes longer than all else, and a request may have 65,536 entries.
        if type(weight) is not float and (isinstance(weight, bool) or not isinstance(weight, Real)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"weights must be numbers, got {weight!r}")
        if not abs(weight) <= sys.float_info.max or weight < 0:
            raise ValueError(f"weights must be positive or zero, and finite, got {weight!r} in {tuple(weights)}")
    # Not `sum`, which compensates rounding errors from Python 3.12 on: shares must not depend on Python's version.
    total = functools.reduce(operator.add, map(float, weights), 0.0)
    if not 0 < total <= sys.float_info.max:
        raise ValueError(f"weights must have a positive, finite sum, got {tuple(weights)}")
    return Shares(float(weight) / total for weight in weights)


class Entry(NamedTuple):
    """The shares from position `start` on."""

    start: int
    shares: Shares


class Schedule:
    """Entries in order of their starts, the first at 0; the shares of a position are those of the last entry up to it.

    Immutable. A schedule that continues another shares its memory, so that one more entry costs the same at any length.
    """

    def __init__(self, entries: Iterable[Entry]):
        """Raises ValueError unless the entries begin at 0 and their starts are strictly increasing."""
        self.entries: Appended[Entry] = entries if isinstance(entries, Appended) else Appended(entries)
        starts = [entry.start for entry in self.entries]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"a schedule's entries must start at 0 and strictly increase, got starts {starts!r:.200}")

    def followed_by(self, entries: Sequence[Entry]) -> "Schedule":
        """This schedule up to the start of the first of `entries`, and `entries` after it, replacing later ones.

        Raises ValueError unless the starts of `entries` are strictly increasing.
        """
        kept = bisect_left(self.entries, entries[0].start, key=_start)
        if not kept:
            return Schedule(entries)
        Schedule([Entry(0, entries[0].shares), *entries])  # only to check the order of the new ones
        # Without `__init__`, which looks at every entry: a schedule may have 100,000, and grow by one at a time.
        followed = Schedule.__new__(Schedule)
        followed.entries = self.entries[:kept].followed_by(entries)
        return followed

    @property
    def has_one_entry(self) -> bool:
        """Whether the weights never change."""
        return len(self.entries) == 1

    def at(self, position: int) -> tuple[Entry, int | None]:
        """The entry in force at a position, and the start of the next one, None if there is none."""
        place = bisect_right(self.entries, position, key=_start)
        return self.entries[place - 1], self.entries[place].start if place < len(self.entries) else None

    def parts(self, start: int, stop: int) -> Iterator[tuple[Entry, int, int]]:
        """Cut the positions [start, stop) by entry; yields (entry, first, stop) of each part."""
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
