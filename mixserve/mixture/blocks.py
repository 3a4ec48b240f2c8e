"""Plans for readers that continue where they stopped: made in blocks, cached, and the next block prefetched."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Int64, UInt32

from mixserve.mixture.leaves import AnyPlanner, Plan
from mixserve.mixture.sampling import check_end, rounded_up
from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.positions import POSITION_LIMIT, Range, ranges_of

_BLOCK, _BLOCK_OF_MANY_SOURCES, _LEAST_BLOCK, _MANY_SOURCES = 4096, 1024, 64, 32
_BLOCK_COST = 1 << 20
_EPOCH_BLOCK = 8192
_MOST_BLOCKS, _MOST_BYTES = 256, 64 << 20
_POSITION_BYTES = 20  # of a plan with keys
_MOST_ENDS = 4096
# Positions that lie scattered are planned one by one where blocks would plan this many times as many in vain.
_SPARSE = 4

_Name = tuple[object, bytes, int]  # of a planner, a key, and a number
_Begin = Callable[[], Callable[[], Plan]]


class PlanBlocks:
    """Plans ranges of positions; safe to use from many threads.

    A plan of thousands of positions costs little more than one of 16. So where a range begins at the end of another,
    the whole blocks around it are planned, and the block after them is begun. Elsewhere only what is asked is planned.
    """

    def __init__(self, planner: AnyPlanner, cache: "_PlanCache | None" = None):
        self.planner = planner
        self._cache = cache or _PlanCache()
        self._token = object()  # stands for the planner in the cache, which must not keep it alive
        self._cached_size = rounded_up(_size_to_cache(planner), planner.block_size)

    def beside(self, planner: AnyPlanner) -> "PlanBlocks":
        """Plans of the same readers by another planner, in the same cache."""
        return PlanBlocks(planner, self._cache)

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
        block_size = self.planner.block_size
        return min(stride, size if block_size == 1 else (size // block_size + 2) * block_size)

    def planned_at_once(self, positions: Int64[np.ndarray, " size"], most: int) -> Iterator[int]:
        """How many of the positions, one part after another, are in blocks of `most` positions together."""
        block_size, taken, blocks = self.planner.block_size, 0, set[int]()
        if len(positions) * block_size <= most:  # without looking at each: always so with replacement
            yield len(positions)
            return
        for block in (positions // block_size).tolist():
            if block not in blocks and (len(blocks) + 1) * block_size > most and taken:
                yield taken
                taken = 0
                blocks.clear()
            blocks.add(block)
            taken += 1
        yield taken

    def _planned(self, first: int, places: Int64[np.ndarray, " size"]) -> int:
        """How many positions are planned where only those places are."""
        size = self.planner.block_size
        return len(places) if size == 1 else len(np.unique((places + first % size) // size)) * size

    def _plan_range(self, key: UInt32[np.ndarray, "2"], start: int, size: int, *, goes_on: bool = False) -> Plan:
        words, end, length = key.tobytes(), start + size, self._cached_size
        first, last = start // length, (end - 1) // length
        cache = self._cache
        with cache.lock:
            # None is what stands under an end that is known; self, which no cache holds, stands for one that is not.
            goes_on = cache.ends.pop((self._token, words, start), self) is None or goes_on
            cache.ends[self._token, words, end] = None
            cache.ends.move_to_end((self._token, words, end))
            if len(cache.ends) > _MOST_ENDS:
                cache.ends.popitem(last=False)
            known = all((self._token, words, block) in cache.blocks for block in range(first, last + 1))
            blocks = list[_Block]()
            if goes_on or known:
                blocks = [self._block(key, words, block) for block in range(first, last + 1)]
        # All that takes time is done without the lock, which all readers share.
        if not blocks:  # a jump: a block would be planned for one request
            return self.planner.plan(key, start, size)
        try:
            for block in blocks:
                block.begin()
            parts = [
                block.plan().part(max(start - at, 0), min(end - at, length))
                for block, at in zip(blocks, range(first * length, end, length), strict=True)
            ]
        except BaseException:
            with cache.lock:
                for number in range(first, last + 1):
                    cache.evict((self._token, words, number))  # so that the next reader begins it again
            raise
        # The next block is prefetched in the second half of this one: it takes as long as many small requests, and
        # readers that stop before would never use it.
        if (end % length > length // 2 or end % length == 0) and (last + 1) * length < (self.end or POSITION_LIMIT):
            with cache.lock:
                ahead = self._block(key, words, last + 1)
            ahead.begin()
        return Plan.joined(parts)

    def _block(self, key: UInt32[np.ndarray, "2"], words: bytes, number: int) -> "_Block":
        """The block of that number, not begun if it is a new one."""
        start = number * self._cached_size
        size = min(self._cached_size, (self.end or POSITION_LIMIT) - start)

        def begin() -> Callable[[], Plan]:
            return self.planner.begin_each(key, np.arange(start, start + size, dtype=np.uint64))

        return self._cache.block((self._token, words, number), size, begin)


class _PlanCache:
    """The blocks of the last readers, up to 256 of 64 MiB, and where each reader stopped. Used under its lock."""

    def __init__(self) -> None:
        self._renew()
        renew_in_forks(self, _PlanCache._renew)

    def _renew(self) -> None:
        # A forked process begins without any: those under way are its parent's, as are their locks.
        self.blocks: OrderedDict[_Name, _Block] = OrderedDict()
        self.ends: OrderedDict[_Name, None] = OrderedDict()
        self.lock = threading.Lock()
        self._bytes = 0

    def block(self, name: _Name, size: int, begin: _Begin) -> "_Block":
        """The block of that name and of `size` positions, a new one if it is not known."""
        block = self.blocks.get(name)
        if block is None:
            block = self.blocks[name] = _Block(begin, size * _POSITION_BYTES)
            self._bytes += block.bytes
        self.blocks.move_to_end(name)
        while len(self.blocks) > _MOST_BLOCKS or (self._bytes > _MOST_BYTES and len(self.blocks) > 1):
            self._bytes -= self.blocks.popitem(last=False)[1].bytes
        return block

    def evict(self, name: _Name) -> None:
        """Let the next reader begin that block again."""
        block = self.blocks.pop(name, None)
        self._bytes -= 0 if block is None else block.bytes


class _Block:
    """A plan under way; once it is made, it holds nothing of its planner."""

    def __init__(self, begin: _Begin, most_bytes: int):
        self.bytes = most_bytes
        self._begin: _Begin | None = begin
        self._finish: Callable[[], Plan] | None = None
        self._made: Plan | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Begin to make it, unless that has been done."""
        with self._lock:
            self._begun()

    def plan(self) -> Plan:
        """It, waited for."""
        with self._lock:
            if self._made is None:
                self._begun()
                assert self._finish is not None
                self._made, self._finish = self._finish(), None
            return self._made

    def _begun(self) -> None:
        if self._begin is not None:
            self._finish, self._begin = self._begin(), None


def _places(ranges: Sequence[Range]) -> Int64[np.ndarray, " size"]:
    """The positions of all ranges, counted from the start of the first."""
    starts = np.array([start - ranges[0][0] for start, _ in ranges], np.int64)
    sizes = np.array([size for _, size in ranges], np.int64)
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum(), dtype=np.int64) + np.repeat(starts - before, sizes)


def _size_to_cache(planner: AnyPlanner) -> int:
    """How many positions to plan at once: thousands cost little more than a few, unless there are so many sources that
    each position takes as long as a call."""
    if planner.block_size > 1:
        return _EPOCH_BLOCK
    most = _BLOCK if planner.cost <= _MANY_SOURCES else _BLOCK_OF_MANY_SOURCES
    fitting = 1 << max(0, _BLOCK_COST // planner.cost).bit_length() >> 1
    return max(_LEAST_BLOCK, min(most, fitting))
