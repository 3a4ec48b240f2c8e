"""Ranges of positions -> their plans, for readers that continue: made in blocks, cached, the next block prefetched."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from jaxtyping import Int64, UInt32

from mixserve.mixture.leaves import AnyPlanner, Plan
from mixserve.mixture.sampling import check_end, round_up
from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.positions import POSITION_LIMIT, Range, ranges_of

# Positions per cached block. With up to 32 sources, 4,096 positions take 2 to 7 times as long to plan as 256; with 256
# sources 11 times as long, so that readers would wait for positions that they may never reach.
_BLOCK, _BLOCK_OF_MANY_SOURCES, _LEAST_BLOCK, _MANY_SOURCES = 4096, 1024, 64, 32
_BLOCK_COST = 1 << 20  # draws of one block, at most: about 30 ms
_EPOCH_BLOCK = 8192
_MOST_BLOCKS, _MOST_BYTES = 256, 64 << 20
_POSITION_BYTES = 20  # source id 4, record id 8, key 8: an upper bound, since most plans have no keys
_MOST_ENDS = 4096
# The blocks of so many of the last jumps are known, a quarter of the blocks that are cached; a jump lies in 1 or 2.
_MOST_JUMPS, _AT_A_JUMP = _MOST_BLOCKS // 4, 2
# If whole blocks would plan more than this many times the requested positions, plan each position by itself.
_SPARSE = 4

_Name = tuple[object, bytes, int]  # (planner's token, key's bytes, number of a block or position of an end)
_Begin = Callable[[], Callable[[], Plan]]


class PlanBlocks:
    """Plans ranges of positions; safe to use from many threads.

    A plan of thousands of positions costs little more than one of 16. So if a range begins where an earlier one ended,
    this plans the whole blocks around it, and prefetches the next block. Other ranges are planned as requested.
    """

    def __init__(self, planner: AnyPlanner, cache: "_PlanCache | None" = None):
        self.planner = planner
        self._cache = cache or _PlanCache()
        # The planner's name in the cache, which must not keep the planner alive. An id() would not do: a later planner
        # may get the same one, and with it these plans.
        self._token = object()
        self._cached_size = round_up(_size_to_cache(planner), planner.block_size)

    def with_planner(self, planner: AnyPlanner) -> "PlanBlocks":
        """The plans of another planner, in the same cache: both count against its limits together."""
        return PlanBlocks(planner, self._cache)

    @property
    def cache_hits(self) -> tuple[int, int]:
        """How many blocks were in the cache, and how many were not."""
        return self._cache.hits, self._cache.misses

    @property
    def end(self) -> int | None:
        """The first position that the mixture does not have; None if it never ends."""
        return self.planner.end

    def plan(self, key: UInt32[np.ndarray, "2"], ranges: Sequence[Range]) -> Plan:
        """The plan of all positions of `ranges`, one range after another.

        Raises OutOfRange if a position is not before the mixture's end.
        """
        if len(ranges) == 1:
            check_end(self.end, *ranges[0])
            return self._plan_range(key, *ranges[0])
        # Ranges that overlap or do not ascend: plan each position once, in order, then put the rows where they belong.
        if any(start + size > following for (start, size), (following, _) in pairwise(ranges)):
            positions, places = np.unique(_places(ranges) + ranges[0][0], return_inverse=True)
            return self.plan(key, ranges_of(positions)).at(places)
        check_end(self.end, *ranges[-1])
        first, (last_start, last_size) = ranges[0][0], ranges[-1]
        span, places = last_start + last_size - first, _places(ranges)
        if span > _SPARSE * self._count_planned(first, places):
            return self.planner.plan_each(key, places.astype(np.uint64) + np.uint64(first))
        return self._plan_range(key, first, span, continues=True).at(places)

    def positions_for(self, size: int, stride: int) -> int:
        """How many positions, at most, each of many batches of `size` costs to plan if they are `stride` apart."""
        block_size = self.planner.block_size
        return min(stride, size if block_size == 1 else (size // block_size + 2) * block_size)

    def planned_at_once(self, positions: Int64[np.ndarray, " size"], most: int) -> Iterator[int]:
        """Cut the positions into parts whose blocks hold at most `most` positions; yields the length of each part."""
        block_size, taken, blocks = self.planner.block_size, 0, set[int]()
        # Fits even if every position lies in a block of its own: no need to look at each one.
        if len(positions) * block_size <= most:
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

    def _count_planned(self, first: int, places: Int64[np.ndarray, " size"]) -> int:
        """How many positions the planner works out if it plans only these places: all of each block that has one."""
        size = self.planner.block_size
        return len(places) if size == 1 else len(np.unique((places + first % size) // size)) * size

    def _plan_range(self, key: UInt32[np.ndarray, "2"], start: int, size: int, *, continues: bool = False) -> Plan:
        words, end, length = key.tobytes(), start + size, self._cached_size
        first, last = start // length, (end - 1) // length
        cache = self._cache
        with cache.lock:
            # A known end maps to None, so pop needs another default: self is never a value in the cache. The reader is
            # about to move on, so its old end goes.
            continues = cache.ends.pop((self._token, words, start), self) is None or continues
            cache.ends[self._token, words, end] = None
            cache.ends.move_to_end((self._token, words, end))
            if len(cache.ends) > _MOST_ENDS:
                cache.ends.popitem(last=False)
            names = [(self._token, words, block) for block in range(first, last + 1)]
            blocks = list[_Block]()
            if continues or all(name in cache.blocks for name in names) or self._comes_back(names):
                blocks = [self._block(key, words, block) for block in range(first, last + 1)]
        # The slow part runs without the lock, which all readers of the mixture share.
        if not blocks:  # a jump: most of a block would be planned for nothing
            return self.planner.plan(key, start, size)
        try:
            # Begin all blocks before waiting for one: JAX computes them asynchronously.
            for block in blocks:
                block.begin()
            parts = [
                block.plan().part(max(start - at, 0), min(end - at, length))
                for block, at in zip(blocks, range(first * length, end, length), strict=True)
            ]
        except BaseException:
            with cache.lock:
                for number in range(first, last + 1):
                    cache.evict((self._token, words, number))  # the next reader begins it again
            raise
        # Prefetch the next block only in the second half of this one: planning it takes as long as many small requests,
        # and a reader that stops early, or reads at random, never uses it.
        is_near = end % length > length // 2 or end % length == 0
        if continues and is_near and (last + 1) * length < (self.end or POSITION_LIMIT):
            with cache.lock:
                ahead = self._block(key, words, last + 1)
            ahead.begin()
        return Plan.join(parts)

    def _comes_back(self, names: list[_Name]) -> bool:
        """Whether readers at random positions come back to these blocks so soon that they pay. Needs the cache's lock.

        In epoch mode even one position takes nearly half as long to plan as a block. A reader that comes back within
        so few jumps will do so several times before the cache, which has more blocks, evicts this one.
        """
        if self.planner.block_size == 1 or len(names) > _AT_A_JUMP:
            return False
        jumps = self._cache.jumps
        known = [name in jumps for name in names]
        for name in names:
            jumps[name] = None
            jumps.move_to_end(name)
        while len(jumps) > _MOST_JUMPS:
            jumps.popitem(last=False)
        return all(known)

    def _block(self, key: UInt32[np.ndarray, "2"], words: bytes, number: int) -> "_Block":
        """The cached block of that number, or a new one that has not begun. Needs the cache's lock."""
        start = number * self._cached_size
        size = min(self._cached_size, (self.end or POSITION_LIMIT) - start)
        return self._cache.block((self._token, words, number), size, partial(self._begin_block, key, start, size))

    def _begin_block(self, key: UInt32[np.ndarray, "2"], start: int, size: int) -> Callable[[], Plan]:
        return self.planner.begin_each(key, np.arange(start, start + size, dtype=np.uint64))


class _PlanCache:
    """The blocks of recent readers, up to 256 and 64 MiB, and where readers stop and jump to. Callers hold its lock."""

    def __init__(self) -> None:
        self.hits = self.misses = 0  # blocks that were there, and that were begun
        self._renew()
        renew_in_forks(self, _PlanCache._renew)

    def _renew(self) -> None:
        # A forked process starts empty: the threads that make the parent's blocks do not exist there, and one of them
        # may have held a lock at the fork.
        self.blocks: OrderedDict[_Name, _Block] = OrderedDict()
        self.ends: OrderedDict[_Name, None] = OrderedDict()
        self.jumps: OrderedDict[_Name, None] = OrderedDict()
        self.lock = threading.Lock()
        self._bytes = 0

    def block(self, name: _Name, size: int, begin: _Begin) -> "_Block":
        """The cached block of that name, or a new one of `size` positions; evicts the least recently used ones."""
        block = self.blocks.get(name)
        self.hits += block is not None
        self.misses += block is None
        if block is None:
            # Counted before it is planned: blocks in flight need their memory too.
            block = self.blocks[name] = _Block(begin, size * _POSITION_BYTES)
            self._bytes += block.bytes
        self.blocks.move_to_end(name)
        while len(self.blocks) > _MOST_BLOCKS or (self._bytes > _MOST_BYTES and len(self.blocks) > 1):
            self._bytes -= self.blocks.popitem(last=False)[1].bytes
        return block

    def evict(self, name: _Name) -> None:
        """Drop the block, if cached, so that the next reader begins it again."""
        block = self.blocks.pop(name, None)
        self._bytes -= 0 if block is None else block.bytes


class _Block:
    """A plan in flight or finished. A finished one no longer refers to its planner."""

    def __init__(self, begin: _Begin, most_bytes: int):
        self.bytes = most_bytes
        self._begin: _Begin | None = begin
        self._finish: Callable[[], Plan] | None = None
        self._result: Plan | None = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Begin to plan, unless an earlier call did."""
        if self._begin is not None:  # without the lock first: nearly every call finds a block that has begun
            with self._lock:
                self._begin_locked()

    def plan(self) -> Plan:
        """The finished plan; waits for it."""
        if self._result is not None:
            return self._result
        with self._lock:  # one thread finishes the plan, and others that need it wait here
            if self._result is None:
                self._begin_locked()
                assert self._finish is not None
                self._result, self._finish = self._finish(), None
            return self._result

    def _begin_locked(self) -> None:
        if self._begin is not None:
            # `_begin` closes over the planner, so drop it as soon as it has run: a cached block must not keep it alive.
            self._finish, self._begin = self._begin(), None


def _places(ranges: Sequence[Range]) -> Int64[np.ndarray, " size"]:
    """The positions of all ranges, relative to the start of the first: int64, though positions reach 2^63."""
    starts = np.array([start - ranges[0][0] for start, _ in ranges], np.int64)
    sizes = np.array([size for _, size in ranges], np.int64)
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum(), dtype=np.int64) + np.repeat(starts - before, sizes)


def _size_to_cache(planner: AnyPlanner) -> int:
    """How many positions to plan at once: thousands, unless each position is slow because of many sources."""
    if planner.block_size > 1:
        return _EPOCH_BLOCK
    most = _BLOCK if planner.cost <= _MANY_SOURCES else _BLOCK_OF_MANY_SOURCES
    fitting = 1 << max(0, _BLOCK_COST // planner.cost).bit_length() >> 1  # the largest power of two within the cost
    return max(_LEAST_BLOCK, min(most, fitting))
