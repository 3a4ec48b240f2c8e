"""How many of the first n positions belong to each source, in exact integers; and where passes over a source end.

Under one entry of a schedule, with integer weights w: peel the sources off in order,
`c = floor((n * w_s + a_s) / (w_s + … + w_last))`, kept within 0..n, then `n -= c`; the last one takes what is left.
Counts step by 0 or 1 and sum to n. In the first entry a_s is half of the divisor, so that counts are rounded.

Where weights change, every source is owed the difference between its exact share and its count so far. The next entry
pays: a_s adds what s is owed, and its share of what was owed to those before it, which they took from its stream.
What sources without weight are owed cannot be paid; it is spread over the others evenly. Without that, counts drift
from the shares: `docs/decisions.md` has figures.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from jaxtyping import Int64

from mixserve.mixture.schedule import Schedule, Shares
from mixserve_client.appended import Appended
from mixserve_client.schema.positions import POSITION_LIMIT

_UNIT = 1 << 32
_ONE = 1 << 64  # what sources are owed is counted in 2^-64 records
_CACHED_COUNTS = 64


class Counts:
    """Counts of the sources under a schedule whose entries begin at borders of blocks."""

    def __init__(self, schedule: Schedule, like: "Counts | None" = None):
        """What the schedule shares with that of `like` is taken from there."""
        self._entries = schedule.entries
        self._shared = 0 if like is None else schedule.entries.shared_with(like._entries)
        peels: Appended[_Peel] = Appended() if like is None else like._peels[: self._shared]
        made = list[_Peel]()
        for place in range(self._shared, len(self._entries)):
            start, shares = self._entries[place]
            last = made[-1] if made else peels[-1] if peels else None
            before, owed = np.zeros(len(shares), np.int64), [0] * len(shares)
            if last is not None:
                before, owed = last.left_after(start - self._entries[place - 1].start)
            made.append(_Peel(shares, owed, before))
        self._peels: Appended[_Peel] = peels.followed_by(made)
        # What `end` was asked for, and found that no entry begins behind it: of shared entries, and of all.
        self._ended_before = None if like is None else like._ended
        self._ended: tuple[tuple[int, ...], bool] | None = None
        self.at: Callable[[int], Int64[np.ndarray, " sources"]] = lru_cache(_CACHED_COUNTS)(self._at)

    def _at(self, n: int) -> Int64[np.ndarray, " sources"]:
        """The records of every source among the first `n` positions."""
        place = bisect_right(self._entries, n, key=lambda entry: entry.start) - 1
        peel = self._peels[place]
        return peel.before + np.array(peel.at(n - self._entries[place].start), np.int64)

    def longest(self, source: int, records: int) -> int | None:
        """The largest n of which at most `records`, at least 1, belong to `source`; None where there is no such n."""
        # The first entry behind which there are more, or the last one.
        place = max(0, bisect_left(self._peels, records + 1, key=lambda peel: int(peel.before[source])) - 1)
        peel = self._peels[place]
        within = peel.longest(source, records - int(peel.before[source]))
        n = None if within is None else self._entries[place].start + within
        return None if n is None or n >= POSITION_LIMIT else n

    def end(self, lengths: Sequence[int], *, of_all: bool) -> int | None:
        """Where the pass over the first source, or over all, is over: the largest n with `count_s(n) <= lengths[s]` for
        all, or for one, of the sources that have a weight then.

        Entries from there on would change what lies before, so they are a ValueError.
        """
        asked = tuple(lengths), of_all
        end, first = 0, max(0, self._shared - 1) if self._ended_before == asked else 0
        for place in range(first, len(self._entries)):
            start, peel = self._entries[place].start, self._peels[place]
            if place > first and end <= start:
                raise ValueError(
                    f"the mixture ends at position {end}, before its weights change at {start}: let them change "
                    "earlier, or use stop='never'"
                )
            end = start + peel.end(
                [length - int(got) for length, got in zip(lengths, peel.before, strict=True)], of_all
            )
        self._ended = asked
        return end if end < POSITION_LIMIT else None


class _Peel:
    """The counts under one entry, from its start on; `before` are those of all entries before it."""

    def __init__(self, shares: Shares, owed: Sequence[int], before: Int64[np.ndarray, " sources"]):
        self.before = before
        self._owed = np.array([_halves(debt) for debt in owed], np.int64)
        self._weights = np.array([max(1, round(share * _UNIT)) if share > 0 else 0 for share in shares], np.int64)
        self._sources = np.flatnonzero(self._weights)
        weights: list[int] = self._weights[self._sources].tolist()
        self._last = len(weights) - 1
        rests = list(accumulate(reversed(weights)))[::-1]
        spread = sum(owed[s] for s in self._sources.tolist()) // len(weights)
        paid, steps = 0, list[tuple[int, int, int]]()
        for source, weight, rest in zip(self._sources.tolist(), weights, rests, strict=True):
            due = owed[source] - spread
            steps.append((weight, rest, ((rest << 63) + due * rest + paid * weight) >> 64))
            paid += due
        self._steps = np.array(steps, np.int64)

    def at(self, n: int) -> list[int]:
        """The count of every source among the first `n` positions of the entry."""
        counts, sources = [0] * len(self._weights), self._sources.tolist()
        for source, (weight, rest, owed) in zip(sources, self._steps[: self._last].tolist(), strict=False):
            count = (n * weight + owed) // rest
            if count > 0:
                counts[source] = count = min(count, n)
                n -= count
        counts[sources[-1]] = n
        return counts

    def left_after(self, n: int) -> tuple[Int64[np.ndarray, " sources"], list[int]]:
        """After `n` positions: the records of every source so far, and what it is owed then, in 2^-64 records."""
        got, total = self.at(n), int(self._weights.sum())
        owed = [
            (high << 64) + (low & (_ONE - 1)) + n * weight * _ONE // total - (count << 64)
            for (high, low), weight, count in zip(self._owed.tolist(), self._weights.tolist(), got, strict=True)
        ]
        return self.before + np.array(got, np.int64), owed

    def longest(self, source: int, records: int) -> int | None:
        """The largest n of which at most `records` belong to `source`; None where it has no weight."""
        if not self._weights[source]:
            return None
        place = int(np.searchsorted(self._sources, source))
        n = self._longest_here(place, records)
        for weight, rest, owed in reversed(self._steps[:place].tolist()):
            n = _longest_that_leaves(n, weight, rest, owed)
        return n

    def end(self, records: Sequence[int], of_all: bool) -> int:
        """The largest n in which no source has more than its `records`, or not all have; what has more already, and
        its number is negative, is left out."""
        n: int | None = None
        for place in reversed(range(len(self._sources))):
            most = records[int(self._sources[place])]
            n = None if n is None else _longest_that_leaves(n, *self._steps[place].tolist())
            if most >= 0:
                here = self._longest_here(place, most)
                n = here if n is None else max(n, here) if of_all else min(n, here)
        return n or 0

    def _longest_here(self, place: int, records: int) -> int:
        """Of what reaches a source, the most in which it has at most `records`."""
        if place == self._last:
            return records
        weight, rest, owed = self._steps[place].tolist()
        return max(records, ((records + 1) * rest - owed - 1) // weight)


def _longest_that_leaves(left: int, weight: int, rest: int, owed: int) -> int:
    """Of what reaches a source, the most of which it leaves at most `left`."""
    n = (left * rest + owed) // (rest - weight)
    return n if n > left else left


def _halves(number: int) -> tuple[int, int]:
    """A number of 128 bits as two of 64, both with a sign."""
    low = number & (_ONE - 1)
    return number >> 64, low - _ONE if low >> 63 else low
