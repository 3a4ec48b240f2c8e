"""Plans without replacement: exact shares per block, and no record repeats before the pass over its source ends.

Block b of B positions holds `count_s((b+1)B) - count_s(bB)` records of source s (`counts`). They are listed source by
source and shuffled: the j-th goes to the slot with the j-th smallest word. The words are those of
`threefry(fold64(key_order, b), [0, i])`, i < ceil(B/2): all first ones, then all second ones. The records of a source
come in order of position: the k-th is row `perm(k mod L)` of pass `k // L`, where `perm` is the `permutation` of [0, L)
under `fold64(fold64(key_rows, s), k // L)`.

`key_order` and `key_rows` are `threefry(key, [2^32 - 1, 1])` and `[2^32 - 1, 2]`: no position has this high word.
Fetch keys are those of `draw`. A child that is a mixture in epoch mode keeps its own order and its own passes: the k-th
record is its position k under `fold64(key_rows, s)`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int, UInt32, UInt64

from mixserve.mixture.counts import Counts
from mixserve.mixture.lanes import threefry_arrays
from mixserve.mixture.leaves import AnyKeys, AnyPlanner, Leaves, Plan
from mixserve.mixture.permutation import permute, sides
from mixserve.mixture.programs import ProgramName
from mixserve.mixture.sampling import ALL, EPOCH, NEVER, Sampling, check_end
from mixserve.mixture.schedule import Schedule
from mixserve_client.schema.positions import POSITION_LIMIT

# In the place of a position, to derive other keys: no position has this high word.
_ORDER, _ROWS = 0xFFFFFFFF << 32 | 1, 0xFFFFFFFF << 32 | 2
_FETCH = 2  # the third key of a position's split
_POSITIONS_AT_ONCE = 1 << 15
_SLOT_BITS = 16  # slots are below the largest block_size, 2^16
_CACHED_KEYS = 64

Pair = tuple[Any, Any]


class EpochPlanner:
    """Plans one mixture in epoch mode. `lengths`, `nested` and `keyed` are as in `Planner`."""

    mode = EPOCH

    def __init__(
        self,
        sampling: Sampling,
        lengths: Sequence[int],
        nested: Mapping[int, AnyPlanner] | None = None,
        *,
        schedule: Schedule | None = None,
        keyed: bool = False,
        like: Counts | None = None,
    ):
        """`schedule` replaces that of `sampling`. `like` has another schedule's counts, reused for shared entries."""
        self.block_size = sampling.block_size
        self.source_count = len(lengths)
        self._leaves = Leaves(self.source_count, nested or {})
        self.leaf_count = self._leaves.count
        # Every block counts and lists all sources, however few positions it has.
        self.cost = 1 + self.source_count // self.block_size + self._leaves.cost
        self._keyed = keyed or bool(self._leaves.nested)
        self._keeps_order = np.array(
            [s in self._leaves.nested and self._leaves.nested[s].mode == EPOCH for s in range(len(lengths))]
        )
        # At least 1, which `sides` needs. Sources without records are never drawn.
        self._lengths = np.array([max(1, length) for length in lengths], np.uint64)
        grids = np.array([sides(int(length)) for length in self._lengths], np.uint64)
        self._grids = np.ascontiguousarray(grids.T)
        self.counts = Counts(schedule or sampling.schedule, like)
        self._keys: Callable[[bytes], tuple[Pair, Pair]] = lru_cache(_CACHED_KEYS)(self._derive_keys)
        self.end = None if sampling.stop == NEVER else self.counts.end(lengths, of_all=sampling.stop == ALL)

    def programs(self, *, first: bool) -> set[ProgramName]:
        return set[ProgramName]().union(*(planner.programs(first=first) for planner in self._leaves.nested.values()))

    def pass_ends(self) -> list[int | None]:
        """Per source, how many positions the first pass over it takes, to within a block; None if it never ends."""
        return [self.counts.longest(source, int(length)) for source, length in enumerate(self._lengths)]

    def plan(self, key: UInt32[np.ndarray, "2"], start: int, size: int) -> Plan:
        check_end(self.end, start, size)
        return self.plan_each(key, np.arange(start, start + size, dtype=np.uint64))

    def begin_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Callable[[], Plan]:
        return lambda: self.plan_each(keys, positions)

    def plan_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Plan:
        positions = positions.astype(np.uint64)
        if len(positions):
            check_end(self.end, int(positions.max()), 1)
        if keys.ndim == 1:
            return self._plan_under_one_key(keys, positions)
        plan = _empty_plan(len(positions), keyed=self._keyed)
        found, which = np.unique(keys, axis=0, return_inverse=True)
        for place, key in enumerate(found):
            here = np.flatnonzero(which.reshape(-1) == place)
            _fill(plan, here, self._plan_under_one_key(key, positions[here]))
        return plan

    def score_words(self, key: UInt32[np.ndarray, "2"], size: int) -> bytes:
        plan = self.plan(key, 0, size if self.end is None else min(size, self.end))
        return plan.source_ids.tobytes() + plan.record_ids.tobytes()

    def _plan_under_one_key(self, key: UInt32[np.ndarray, "2"], positions: UInt64[np.ndarray, " size"]) -> Plan:
        slots = (positions % np.uint64(self.block_size)).astype(np.int64)
        if (
            len(positions)
            and (block := int(positions.min()) // self.block_size) == int(positions.max()) // self.block_size
        ):
            return self._leaves.resolve(self._plan_blocks(key, [block], slots))
        plan = _empty_plan(len(positions), keyed=self._keyed)
        blocks, which = np.unique(positions // np.uint64(self.block_size), return_inverse=True)
        first, at_once = 0, max(1, _POSITIONS_AT_ONCE // self.block_size)
        while first < len(blocks):
            numbers: list[int] = blocks[first : first + at_once].tolist()
            if len(numbers) > 1 and self._size(numbers[-1]) < self.block_size:
                numbers.pop()  # `_plan_blocks` needs blocks of one size: the short one comes alone
            here = np.flatnonzero((which >= first) & (which < first + len(numbers)))
            _fill(plan, here, self._plan_blocks(key, numbers, (which[here] - first) * self.block_size + slots[here]))
            first += len(numbers)
        return self._leaves.resolve(plan)

    def _size(self, number: int) -> int:
        """The number of positions of a block: fewer than `block_size` if the mixture ends in it."""
        return min(self.block_size, (POSITION_LIMIT if self.end is None else self.end) - number * self.block_size)

    def _plan_blocks(
        self, key: UInt32[np.ndarray, "2"], numbers: list[int], wanted: Int[np.ndarray, " wanted"]
    ) -> Plan:
        """The plan, by sources, of the `wanted` places in these blocks, all of one size; places count through them."""
        starts, size = [number * self.block_size for number in numbers], self._size(numbers[-1])
        before = np.stack([self.counts.at(start) for start in starts])
        counts = (np.stack([self.counts.at(start + size) for start in starts]) - before).reshape(-1)
        # All arrays from here on are in the order of the lists: by block, then source, then position.
        listed = np.arange(len(numbers) * size)
        group = np.repeat(np.arange(len(counts)), counts)
        # One sort of (group, slot) pairs: the slots of each source ascend, so its records come in order of position.
        slots = np.sort(group << _SLOT_BITS | self._shuffle(key, numbers, size).reshape(-1)) & ((1 << _SLOT_BITS) - 1)
        places = slots if len(numbers) == 1 else listed // size * size + slots
        if len(wanted) < len(places):
            is_wanted = np.zeros(len(places), bool)
            is_wanted[wanted] = True
            listed = np.flatnonzero(is_wanted[places])
            group, places = group[listed], places[listed]
        ranks = listed + (before.reshape(-1) - (np.cumsum(counts) - counts))[group]
        sources = group % self.source_count
        records, keys = self._records(key, group, sources, ranks.astype(np.uint64))

        plan = _empty_plan(len(numbers) * size, keyed=self._keyed)
        plan.source_ids[places], plan.record_ids[places] = sources, records
        if plan.fetch_keys is not None:
            positions = np.array(starts, np.uint64)[places // size] + (places % size).astype(np.uint64)
            at_positions = _fold64((key[:1], key[1:]), positions)
            fetch = np.stack(threefry_arrays(at_positions, _counter(np.array([_FETCH], np.uint64))), axis=1)
            plan.fetch_keys[places] = np.where(self._keeps_order[sources][:, None], keys, fetch)
        return plan.at(wanted)

    def _shuffle(self, key: UInt32[np.ndarray, "2"], numbers: list[int], size: int) -> Int[np.ndarray, "blocks size"]:
        """Per block, the slot of each listed record."""
        left, right = _fold64(self._keys(key.tobytes())[0], np.array(numbers, np.uint64))
        counters = np.arange((size + 1) // 2, dtype=np.uint64)
        words = np.concatenate(_fold64((left[:, None], right[:, None]), counters[None]), axis=1)[:, :size]
        # Word and slot in one number: equal words are ordered by slot, so the result does not depend on the sort.
        keyed = words.astype(np.uint64) << np.uint64(32) | np.arange(size, dtype=np.uint64)
        keyed.sort(axis=1)
        return (keyed & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def _records(
        self,
        key: UInt32[np.ndarray, "2"],
        group: Int[np.ndarray, " size"],
        sources: Int[np.ndarray, " size"],
        ranks: UInt64[np.ndarray, " size"],
    ) -> tuple[UInt64[np.ndarray, " size"], UInt32[np.ndarray, "size 2"]]:
        """The record of each rank in its source, and its pass's key. Equal groups are adjacent, ordered by rank."""
        lengths = self._lengths[sources]
        passes = ranks // lengths
        rows = ranks - passes * lengths
        # Where a group or a pass begins: a key is derived once for each, not once for each record.
        begins = np.ones(len(group), bool)
        begins[1:] = (group[1:] != group[:-1]) | (passes[1:] != passes[:-1])
        first = np.flatnonzero(begins)
        left, right = self._keys(key.tobytes())[1]
        here = sources[first]
        of_sources = np.stack((left[here], right[here]), axis=1)
        of_passes = np.stack(_fold64((left[here], right[here]), passes[first]), axis=1)
        words = np.where(self._keeps_order[here][:, None], of_sources, of_passes)
        keys = words[np.cumsum(begins) - 1]
        records = permute(rows, lengths, (self._grids[0][sources], self._grids[1][sources]), keys)
        return np.where(self._keeps_order[sources], ranks, records), keys

    def _derive_keys(self, key: bytes) -> tuple[Pair, Pair]:
        """`key_order`, and the key of each source under `key_rows`."""
        words = np.frombuffer(key, np.uint32)
        order, rows = (_fold64((words[:1], words[1:]), np.array([tag], np.uint64)) for tag in (_ORDER, _ROWS))
        return order, _fold64(rows, np.arange(self.source_count, dtype=np.uint64))


def _empty_plan(size: int, *, keyed: bool) -> Plan:
    keys = np.empty((size, 2), np.uint32) if keyed else None
    return Plan(np.empty(size, np.int32), np.empty(size, np.int64), keys)


def _fill(plan: Plan, here: Int[np.ndarray, " some"], part: Plan) -> None:
    plan.source_ids[here], plan.record_ids[here] = part.source_ids, part.record_ids
    if plan.fetch_keys is not None:
        assert part.fetch_keys is not None
        plan.fetch_keys[here] = part.fetch_keys


def _fold64(key: Pair, numbers: UInt64[np.ndarray, " *shape"]) -> Pair:
    """`fold64(key, number)`, element by element."""
    return threefry_arrays(key, _counter(numbers))


def _counter(numbers: UInt64[np.ndarray, " *shape"]) -> Pair:
    return (numbers >> np.uint64(32)).astype(np.uint32), numbers.astype(np.uint32)
