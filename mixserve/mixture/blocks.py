"""Plans for readers that go on where they stopped: drawn in blocks, kept for a while, the next block drawn ahead."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from jaxtyping import Int64, UInt32

from mixserve.mixture.leaves import AnyPlanner, Plan
from mixserve.mixture.sampling import check_end, rounded_up
from mixserve_client.wire.request import POSITION_LIMIT, Range, ranges_of

_BLOCK, _BLOCK_OF_MANY_SOURCES, _MANY_SOURCES = 4096, 1024, 32
_BLOCK_OF_GRAINS = 8192
_KEPT_BLOCKS = 256
_KEPT_ENDS = 4096
# Positions that lie scattered are planned one by one where blocks would plan this many times as many in vain.
_SPARSE = 4

K = TypeVar("K")
V = TypeVar("V")


class PlanBlocks:
    """Plans ranges of positions; safe to use from many threads.

    A plan of thousands of positions costs little more than one of 16. So where a range begins at the end of another,
    the whole blocks around it are planned, and the block after them is begun. Elsewhere only what is asked is planned.
    """

    def __init__(self, planner: AnyPlanner, kept: "_Kept | None" = None):
        self.planner = planner
        self._kept = kept or _Kept()
        self._token = object()  # stands for the planner, and keeps it not alive
        # Every source adds a draw per position.
        most = _BLOCK if planner.source_count <= _MANY_SOURCES else _BLOCK_OF_MANY_SOURCES
        if planner.grain > 1:
            most = _BLOCK_OF_GRAINS
        self._block_size = rounded_up(most, planner.grain)

    def beside(self, planner: AnyPlanner) -> "PlanBlocks":
        """Plans of the same readers by another planner; they are kept together."""
        return PlanBlocks(planner, self._kept)

    @property
    def end(self) -> int | None:
        """The first position that does not exist."""
        return self.planner.end

    def plan(self, key: UInt32[np.ndarray, "2"], ranges: Sequence[Range]) -> Plan:
        """The plan of all positions of `ranges`, one range after another. Raises OutOfRange."""
        if any(start + size > following for (start, size), (following, _) in pairwise(ranges)):
            positions, places = np.unique(_places(ranges) + ranges[0][0], return_inverse=True)
            return self.plan(key, ranges_of(positions)).at(places)
        check_end(self.end, *ranges[-1])
        if len(ranges) == 1:
            return self._plan_range(key, *ranges[0])
        first, (last_start, last_size) = ranges[0][0], ranges[-1]
        span, places = last_start + last_size - first, _places(ranges)
        if span > _SPARSE * self._planned(first, places):
            return self.planner.plan_each(key, places.astype(np.uint64) + np.uint64(first))
        return self._plan_range(key, first, span, goes_on=True).at(places)

    def positions_for(self, size: int, stride: int) -> int:
        """How many positions are planned, at most, for each of many batches of `size` that are `stride` apart."""
        grain = self.planner.grain
        return min(stride, size if grain == 1 else (size // grain + 2) * grain)

    def planned_at_once(self, positions: Int64[np.ndarray, " size"], most: int) -> Iterator[int]:
        """How many of the positions, one part after another, are in blocks of `most` positions together."""
        grain, taken, blocks = self.planner.grain, 0, set[int]()
        if len(positions) * grain <= most:  # without looking at each: always so with replacement
            yield len(positions)
            return
        for block in (positions // grain).tolist():
            if block not in blocks and (len(blocks) + 1) * grain > most and taken:
                yield taken
                taken = 0
                blocks.clear()
            blocks.add(block)
            taken += 1
        yield taken

    def _planned(self, first: int, places: Int64[np.ndarray, " size"]) -> int:
        """How many positions are planned where only those places are."""
        grain = self.planner.grain
        return len(places) if grain == 1 else len(np.unique((places + first % grain) // grain)) * grain

    def _plan_range(self, key: UInt32[np.ndarray, "2"], start: int, size: int, *, goes_on: bool = False) -> Plan:
        words, end, length = key.tobytes(), start + size, self._block_size
        first, last = start // length, (end - 1) // length
        kept = self._kept
        with kept.lock:
            goes_on = kept.ends.pop((self._token, words, start), self) is None or goes_on
            _keep(kept.ends, (self._token, words, end), None, _KEPT_ENDS)
            known = all((self._token, words, block) in kept.blocks for block in range(first, last + 1))
            if not (goes_on or known):
                blocks = None
            else:
                blocks = [self._block(key, words, block) for block in range(first, last + 1)]
                ahead = (last + 1) * length
                if (end % length > length // 2 or end % length == 0) and ahead < (self.end or POSITION_LIMIT):
                    self._block(key, words, last + 1)
        if blocks is None:
            return self.planner.plan(key, start, size)
        parts: list[Plan] = []
        for number, block in enumerate(blocks, first):
            at = number * length
            try:
                parts.append(block.plan.part(max(start - at, 0), min(end - at, length)))
            except BaseException:
                with kept.lock:
                    kept.blocks.pop((self._token, words, number), None)  # to be begun anew
                raise
        return Plan.joined(parts)

    def _block(self, key: UInt32[np.ndarray, "2"], words: bytes, number: int) -> "_Block":
        block = self._kept.blocks.get((self._token, words, number))
        if block is None:
            start = number * self._block_size
            stop = min(start + self._block_size, self.end or POSITION_LIMIT)
            block = _Block(self.planner.begin_each(key, np.arange(start, stop, dtype=np.uint64)))
        _keep(self._kept.blocks, (self._token, words, number), block, _KEPT_BLOCKS)
        return block


class _Kept:
    """The blocks of the last readers, and where these stopped."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[tuple[object, bytes, int], _Block] = OrderedDict()
        self.ends: OrderedDict[tuple[object, bytes, int], None] = OrderedDict()
        self.lock = threading.Lock()


class _Block:
    """A plan under way; once it is made, nothing of its planner is kept."""

    def __init__(self, finish: Callable[[], Plan]):
        self._finish: Callable[[], Plan] | None = finish
        self._made: Plan | None = None
        self._lock = threading.Lock()

    @property
    def plan(self) -> Plan:
        with self._lock:
            if self._made is None:
                assert self._finish is not None
                self._made, self._finish = self._finish(), None
            return self._made


def _places(ranges: Sequence[Range]) -> Int64[np.ndarray, " size"]:
    """The positions of all ranges, counted from the start of the first."""
    starts = np.array([start - ranges[0][0] for start, _ in ranges], np.int64)
    sizes = np.array([size for _, size in ranges], np.int64)
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum(), dtype=np.int64) + np.repeat(starts - before, sizes)


def _keep(kept: "OrderedDict[K, V]", key: K, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
