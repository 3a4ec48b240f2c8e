"""Plans in blocks equal the planner's own, for any requests in any order, from any number of threads."""

import random
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.epoch import EpochPlanner
from mixserve.mixture.plan import Plan, Planner
from mixserve.mixture.sampling import Sampling
from mixserve.mixture.schedule import Entry, Schedule, normalised
from mixserve_client.schema.keys import key_words
from tests.profiles import examples

LIMIT = 2**63 - 1
DEADLINE_S = 60
KEYS = [key_words(seed) for seed in (0, 7, 2**32 - 1)]


def planner_of(lengths: list[int], *, keyed: bool = False, nested: dict[int, Planner] | None = None) -> Planner:
    weights = normalised([1.0 + i % 3 for i in range(len(lengths))])
    return Planner(weights, lengths, nested, keyed=keyed, sizes=(1024,))  # one size is enough, and compiles faster


def nested_planner() -> Planner:
    inner = planner_of([5, 2**40, 9], keyed=True)
    return planner_of([100, 2**40 + 14, 30], nested={1: inner})


PLANNERS = {
    "flat": planner_of([10, 2000, 33]),
    "many sources": planner_of([10 + i for i in range(40)]),
    "keyed": planner_of([10, 2000, 33], keyed=True),
    "nested": nested_planner(),
}


@pytest.fixture(params=PLANNERS)
def planner(request: pytest.FixtureRequest) -> Planner:
    return PLANNERS[request.param]


def assert_plans_equal(found: Plan, expected: Plan) -> None:
    for got, wanted in zip(found, expected, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            assert got.dtype == wanted.dtype
            assert got.shape == wanted.shape
            np.testing.assert_array_equal(got, wanted)


def plan_of(planner: Planner, key: np.ndarray, ranges: list[tuple[int, int]]) -> Plan:
    """The plan of `ranges`, straight from the planner."""
    positions = np.concatenate([np.arange(start, start + size, dtype=np.uint64) for start, size in ranges])
    return planner.plan_each(key, positions)


starts = st.one_of(
    st.integers(0, 20_000),
    st.integers(2**32 - 20_000, 2**32 + 100),
    st.integers(LIMIT - 20_000, LIMIT - 1),
    st.integers(0, LIMIT - 1),
)


@st.composite
def draw_requests(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, int]]]]:
    """(number of the key, ranges) of a few readers' requests, one after another."""
    at, found = draw(starts), list[tuple[int, list[tuple[int, int]]]]()
    for _ in range(draw(st.integers(1, 8))):
        step = draw(st.sampled_from(["on", "on", "on", "again", "back", "far"]))
        if step == "far":
            at = draw(starts)
        elif step == "back":
            at = max(0, at - draw(st.integers(1, 9000)))
        size = draw(st.sampled_from([1, 3, 64, 1024, 1500, 4096, 5000]))
        count = draw(st.integers(1, 4))
        stride = size + draw(st.sampled_from([0, 1, size, 5 * size, 7000]))
        if at + (count - 1) * stride + size > LIMIT:
            count, size = 1, min(size, LIMIT - at)
        if size == 0:
            at, size = LIMIT - 1, 1
        found.append((draw(st.integers(0, len(KEYS) - 1)), [(at + i * stride, size) for i in range(count)]))
        if step != "again":
            at = found[-1][1][-1][0] + size
    return found


@settings(max_examples=examples(20), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=draw_requests())
def test_whatever_is_asked_is_planned_as_the_planner_does(planner, requests):
    blocks = PlanBlocks(planner)
    for key, ranges in requests:
        assert_plans_equal(blocks.plan(KEYS[key], ranges), plan_of(planner, KEYS[key], ranges))


def test_a_reader_that_goes_on_and_on(planner):
    blocks, at = PlanBlocks(planner), 4000
    for size in [100] * 30 + [1, 4096, 3, 5000, 4096 - 3, 2**13]:
        assert_plans_equal(blocks.plan(KEYS[1], [(at, size)]), planner.plan(KEYS[1], at, size))
        at += size


@pytest.mark.parametrize("size", [1, 100, 4096, 5000])
def test_the_last_positions_of_all(planner, size):
    blocks = PlanBlocks(planner)
    for at in range(LIMIT - 3 * size, LIMIT, size):
        assert_plans_equal(blocks.plan(KEYS[1], [(at, size)]), planner.plan(KEYS[1], at, size))


def test_readers_of_shards_and_of_several_keys_in_turns(planner):
    blocks = PlanBlocks(planner)
    for batch in range(12):
        for shard in range(3):
            for key in KEYS:
                ranges = [(batch * 2000 + i * 500 + shard * 160, 160) for i in range(4)]
                assert_plans_equal(blocks.plan(key, ranges), plan_of(planner, key, ranges))


def test_more_keys_than_blocks_are_kept():
    blocks, planner = PlanBlocks(PLANNERS["flat"]), PLANNERS["flat"]
    for _ in range(2):
        for seed in range(300):
            for at in (0, 50):
                found = blocks.plan(key_words(seed), [(at, 50)])
        assert_plans_equal(found, planner.plan(key_words(299), 50, 50))
    assert_plans_equal(blocks.plan(key_words(3), [(100, 50)]), planner.plan(key_words(3), 100, 50))


def test_plans_are_not_changed_by_later_ones(planner):
    blocks = PlanBlocks(planner)
    plans = [blocks.plan(KEYS[0], [(at, 512)]) for at in range(0, 10_240, 512)]
    for number, found in enumerate(plans):
        assert_plans_equal(found, planner.plan(KEYS[0], number * 512, 512))


def test_many_threads_get_their_own_plans(planner):
    blocks, together, failed = PlanBlocks(planner), threading.Barrier(8), list[Any]()
    expected = {number: planner.plan(key, 0, 30_000) for number, key in enumerate(KEYS)}

    def read(thread: int) -> None:
        rng = random.Random(thread // 2)  # pairs of threads ask for the same
        number, at = rng.randrange(len(KEYS)), rng.randrange(5000)
        together.wait(DEADLINE_S)
        for _ in range(25):
            size = rng.randint(1, 900)
            found, whole = blocks.plan(KEYS[number], [(at, size)]), expected[number].part(at, at + size)
            try:
                assert_plans_equal(found, whole)
            except AssertionError as error:
                failed.append(error)
            at += size

    threads = [threading.Thread(target=read, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert failed == []


def test_ranges_that_lie_closely_are_planned_from_few_blocks():
    planner = Planner((0.5, 0.5), (10, 20), sizes=(1024,))
    begun: list[int] = []

    class Counting:
        source_count, block_size, cost, end = 2, 1, 2, None

        def begin_each(self, key, positions):
            begun.append(len(positions))
            return planner.begin_each(key, positions)

    blocks = PlanBlocks(Counting())  # type: ignore[arg-type]
    key = np.array([0, 3], np.uint32)
    ranges = [(start, 8) for start in range(0, 1600, 16)]
    plan = blocks.plan(key, ranges)
    whole = planner.plan(key, 0, 1600)
    places = np.concatenate([np.arange(start, start + 8) for start, _ in ranges])
    assert plan.source_ids.tolist() == whole.source_ids[places].tolist()
    assert plan.record_ids.tolist() == whole.record_ids[places].tolist()
    assert len(begun) <= 2


class Slow:
    """A planner whose plans of one key wait until the test lets them begin."""

    source_count, block_size, cost, end = 2, 1, 2, None

    def __init__(self):
        self.planner = Planner((0.5, 0.5), (10, 20), sizes=(1024,))
        self.reached, self.go = threading.Event(), threading.Event()
        self.plan = self.planner.plan

    def begin_each(self, key, positions):
        if int(key[1]) == 1:
            self.reached.set()
            assert self.go.wait(DEADLINE_S)
        return self.planner.begin_each(key, positions)


def test_a_plan_that_takes_long_to_begin_holds_up_nobody_else():
    slow = Slow()
    blocks = PlanBlocks(slow)  # type: ignore[arg-type]
    keys = [np.array([0, number], np.uint32) for number in range(3)]

    def going_on(key: np.ndarray) -> Plan:
        blocks.plan(key, [(0, 10)])
        return blocks.plan(key, [(10, 10)])

    waiting = threading.Thread(target=going_on, args=(keys[1],), daemon=True)
    waiting.start()
    assert slow.reached.wait(DEADLINE_S)
    found = list[Plan]()
    other = threading.Thread(target=lambda: found.append(going_on(keys[2])), daemon=True)
    other.start()
    other.join(DEADLINE_S / 4)
    slow.go.set()
    waiting.join(DEADLINE_S)
    assert len(found) == 1
    assert_plans_equal(found[0], slow.planner.plan(keys[2], 10, 10))


def test_an_error_is_not_kept_and_nothing_of_it_is_counted():
    slow, fails = Slow(), [True]
    begin_each = slow.begin_each

    def failing(key: Any, positions: Any) -> Any:
        if fails.pop() if fails else False:
            raise MemoryError("no room")
        return begin_each(key, positions)

    slow.begin_each = failing
    blocks, key = PlanBlocks(slow), np.array([0, 2], np.uint32)  # type: ignore[arg-type]
    blocks.plan(key, [(0, 10)])
    with pytest.raises(MemoryError):
        blocks.plan(key, [(10, 10)])
    assert blocks._cache._bytes == 0
    assert_plans_equal(blocks.plan(key, [(20, 10)]), slow.planner.plan(key, 20, 10))


def test_blocks_are_kept_up_to_so_many_bytes():
    class Large:
        source_count, block_size, cost, end, mode = 1, 1 << 16, 1, None, "epoch"

        def begin_each(self, key, positions):
            return lambda: Plan(np.zeros(len(positions), np.int32), np.zeros(len(positions), np.int64))

        def plan(self, key, start, size):
            return self.begin_each(key, np.arange(start, start + size))()

    blocks, key = PlanBlocks(Large()), np.array([0, 3], np.uint32)  # type: ignore[arg-type]
    for at in range(0, 200 << 16, 1 << 15):
        blocks.plan(key, [(at, 1 << 15)])
    held = sum(block.bytes for block in blocks._cache.blocks.values())
    assert held == blocks._cache._bytes
    assert (1 << 20) < held <= 64 << 20  # it once was 335 MB for 256 blocks of such a size


def epoch_planner() -> EpochPlanner:
    schedule = Schedule([Entry(0, normalised((1, 2, 5)))])
    return EpochPlanner(Sampling(schedule, "epoch", block_size=2048), [10_000, 3000, 7])


def test_a_reader_that_comes_back_to_blocks_in_epoch_mode_finds_them_planned():
    """It would order a block for each of its requests; one that does not come back must not plan more than it asks."""
    planner, begun = epoch_planner(), list[int]()
    begin_each = planner.begin_each

    def counted(keys: Any, positions: Any) -> Any:
        begun.append(len(positions))
        return begin_each(keys, positions)

    blocks = PlanBlocks(planner)
    planner.begin_each = counted
    rng = np.random.default_rng(3)
    for start in rng.integers(0, LIMIT - 8, 300).tolist():  # anywhere
        assert_plans_equal(blocks.plan(KEYS[1], [(start, 8)]), planner.plan(KEYS[1], start, 8))
    assert begun == []
    whole = planner.plan(KEYS[1], 0, 40_000)
    for start in rng.integers(0, 40_000 - 8, 300).tolist():
        assert_plans_equal(blocks.plan(KEYS[1], [(start, 8)]), whole.part(start, start + 8))
    assert begun == [8192] * 5
    assert len(blocks._cache.jumps) <= 64
