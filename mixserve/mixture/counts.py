"""How many of the first n positions belong to each source, in exact integers; and where passes over a source end.

Under one entry of a schedule, with integer weights w, the sources are peeled off in order:
`c = floor((n * w_s + a_s) / (w_s + … + w_last))`, limited to 0..n, then `n -= c`; the last source takes the rest.
From one n to the next, counts grow by 0 or 1, and they sum to n. In the first entry a_s is half of the divisor, so that
counts are rounded to the nearest.

When weights change, every source is owed the difference between its exact share and its count so far. The next entry
pays this debt: a_s adds what s is owed, and its share of the debts to sources before it, which took their payment from
its stream. Debts to sources without weight cannot be paid to them; they are spread evenly over the other sources.
Without these payments counts drift from the shares: `docs/decisions.md` has figures.
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

_UNIT = 1 << 32  # the integer weight of a share of 1
_ONE = 1 << 64  # debts are counted in units of 2^-64 records
_CACHED_COUNTS = 64


class Counts:
    """The counts of the sources under a schedule whose entries begin at block boundaries."""

    def __init__(self, schedule: Schedule, like: "Counts | None" = None):
        """`like` has the counts of another schedule; those of the entries that both share are reused."""
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
        # The arguments for which `end` found no entry after the end: of the shared entries, and of all. A reader's
        # schedule grows entry by entry, and `end` need not look at the shared ones again.
        self._ended_before = None if like is None else like._ended
        self._ended: tuple[tuple[int, ...], bool] | None = None
        self.at: Callable[[int], Int64[np.ndarray, " sources"]] = lru_cache(_CACHED_COUNTS)(self._at)

    def _at(self, n: int) -> Int64[np.ndarray, " sources"]:
        """The number of records of every source among the first `n` positions."""
        place = bisect_right(self._entries, n, key=lambda entry: entry.start) - 1
        peel = self._peels[place]
        return peel.before + np.array(peel.at(n - self._entries[place].start), np.int64)

    def longest(self, source: int, records: int) -> int | None:
        """The largest n whose first n positions hold at most `records` (at least 1) of `source`; None if none is."""
        # The first entry after which there are more, or the last one.
        place = max(0, bisect_left(self._peels, records + 1, key=lambda peel: int(peel.before[source])) - 1)
        peel = self._peels[place]
        within = peel.longest(source, records - int(peel.before[source]))
        n = None if within is None else self._entries[place].start + within
        return None if n is None or n >= POSITION_LIMIT else n

    def end(self, lengths: Sequence[int], *, of_all: bool) -> int | None:
        """The position where the pass over the first source, or over all, ends; None from 2^63 - 1 on.

        It is the largest n with `count_s(n) <= lengths[s]` for all (`of_all`: for one) of the sources that have a
        weight then. Raises ValueError if an entry begins at or after the end.
        """
        asked = tuple(lengths), of_all
        end, first = 0, max(0, self._shared - 1) if self._ended_before == asked else 0
        for place in range(first, len(self._entries)):
            start, peel = self._entries[place].start, self._peels[place]
            # An error, since an entry after the end would move the end.
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
    """The counts under one entry, from its start on; `before` has the counts at its start."""

    def __init__(self, shares: Shares, owed: Sequence[int], before: Int64[np.ndarray, " sources"]):
        self.before = before
        # Debts take more than 64 bits, so two halves each. Not Python's integers: a client may send a schedule of many
        # entries, and the server holds these arrays for each one.
        self._owed = np.array([_halves(debt) for debt in owed], np.int64)
        # At least 1: a share below 2^-33 must not become a source without weight.
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
        """The count of every source among the first `n` positions of this entry alone.

        In Python's integers: products take up to 96 bits, which NumPy does not have.
        """
        counts, sources = [0] * len(self._weights), self._sources.tolist()
        for source, (weight, rest, owed) in zip(sources, self._steps[: self._last].tolist(), strict=False):
            count = (n * weight + owed) // rest
            if count > 0:
                counts[source] = count = min(count, n)
                n -= count
        counts[sources[-1]] = n
        return counts

    def left_after(self, n: int) -> tuple[Int64[np.ndarray, " sources"], list[int]]:
        """After `n` positions of the entry: every source's count since position 0, and its debt in 2^-64 records."""
        got, total = self.at(n), int(self._weights.sum())
        owed = [
            (high << 64) + (low & (_ONE - 1)) + n * weight * _ONE // total - (count << 64)
            for (high, low), weight, count in zip(self._owed.tolist(), self._weights.tolist(), got, strict=True)
        ]
        return self.before + np.array(got, np.int64), owed

    def longest(self, source: int, records: int) -> int | None:
        """The largest n whose first n positions hold at most `records` of `source`; None if it has no weight."""
        if not self._weights[source]:
            return None
        place = int(np.searchsorted(self._sources, source))
        n = self._longest_here(place, records)
        for weight, rest, owed in reversed(self._steps[:place].tolist()):
            n = _longest_that_leaves(n, weight, rest, owed)
        return n

    def end(self, records: Sequence[int], of_all: bool) -> int:
        """The largest n at which no source has more than its `records` (`of_all`: at which not all have more).

        A negative number stands for a source that has more already; it is left out.
        """
        n: int | None = None
        for place in reversed(range(len(self._sources))):
            most = records[int(self._sources[place])]
            n = None if n is None else _longest_that_leaves(n, *self._steps[place].tolist())
            if most >= 0:
                here = self._longest_here(place, most)
                n = here if n is None else max(n, here) if of_all else min(n, here)
        return n or 0

    def _longest_here(self, place: int, records: int) -> int:
        """The most positions that may reach a source so that it takes at most `records` of them."""
        if place == self._last:
            return records
        weight, rest, owed = self._steps[place].tolist()
        return max(records, ((records + 1) * rest - owed - 1) // weight)


def _longest_that_leaves(left: int, weight: int, rest: int, owed: int) -> int:
    """The most positions that may reach a source so that it leaves at most `left` of them."""
    n = (left * rest + owed) // (rest - weight)
    return n if n > left else left


def _halves(number: int) -> tuple[int, int]:
    """A signed number of 128 bits as (high, low) of 64 bits, both signed as NumPy's int64 is."""
    low = number & (_ONE - 1)
    return number >> 64, low - _ONE if low >> 63 else low
