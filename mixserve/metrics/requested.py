"""Positions of a mixture -> how many records of each leaf its weights ask for."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int

from mixserve.mixture.schedule import Schedule, Shares
from mixserve_client.schema.positions import Range

LeafShares = Callable[[Shares], Float64[np.ndarray, " leaves"]]

_MOST_KNOWN = 64
_FEW_RANGES, _MOST_ENTRIES = 16, 1024


class Requested:
    """Sums of shares: what realised numbers of records are compared with. For one thread at a time."""

    def __init__(self, leaf_shares: LeafShares, leaves: int):
        """`leaf_shares` are the shares of all leaves, given those of the mixture's own sources."""
        self._leaf_shares = leaf_shares
        self._known = dict[Shares, Float64[np.ndarray, " leaves"]]()
        self.records = np.zeros(leaves)

    def add(self, schedule: Schedule, ranges: Sequence[Range], rows: int) -> None:
        """Add what the weights of `schedule` ask for at the positions of `ranges`, which are `rows` in all.

        A schedule of one entry needs no ranges.
        """
        if schedule.has_one_entry:
            self.records += rows * self._of(schedule.entries[0].shares)
        elif len(ranges) <= _FEW_RANGES:
            for start, size in ranges:
                for number, (entry, first, stop) in enumerate(schedule.parts(start, start + size)):
                    last = number == _MOST_ENTRIES  # each of a million positions may have weights of its own
                    self.records += ((start + size if last else stop) - first) * self._of(entry.shares)
                    if last:
                        break
        else:
            self._add_many(schedule, ranges)

    def add_taken(self, leaf_ids: Int[np.ndarray, " rows"]) -> None:
        """Add records that were asked for by their ids: so many of each leaf, whatever its weight."""
        self.records += np.bincount(leaf_ids, minlength=len(self.records))

    def _add_many(self, schedule: Schedule, ranges: Sequence[Range]) -> None:
        """As `add`; each range counts as a whole under the weights of its first position."""
        starts, sizes = (np.array(part, np.int64) for part in zip(*ranges, strict=True))
        order = np.argsort(starts, kind="stable")
        starts, before = starts[order], np.concatenate([[0], np.cumsum(sizes[order])])
        at = 0
        for number in range(_MOST_ENTRIES):
            entry, border = schedule.at(int(starts[at]))
            if border is None or number == _MOST_ENTRIES - 1:
                last = len(starts)
            else:
                last = int(np.searchsorted(starts, border))
            self.records += float(before[last] - before[at]) * self._of(entry.shares)
            at = last
            if at == len(starts):
                return

    def _of(self, shares: Shares) -> Float64[np.ndarray, " leaves"]:
        found = self._known.get(shares)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = self._known[shares] = self._leaf_shares(shares)
        return found
