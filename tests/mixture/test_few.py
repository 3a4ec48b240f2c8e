"""A few positions are planned without a program, and get what the program gives them: any key, weights and lengths."""

import os
from copy import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.mixture import few
from mixserve.mixture.draw import Parts, draw, in_a_clean_thread, on_cpu, pinned_to_cpu
from mixserve.mixture.epoch import EpochPlanner
from mixserve.mixture.few import MARGIN, FewDraws
from mixserve.mixture.lanes import pack, spread, threefry_lanes, unpack_lanes
from mixserve.mixture.leaves import AnyPlanner, Plan
from mixserve.mixture.plan import Planner
from mixserve.mixture.sampling import Sampling
from mixserve.mixture.schedule import Entry, Schedule, normalised
from mixserve.mixture.scheduled import Planners, ScheduledPlanner
from mixserve.mixture.threefry import threefry
from mixserve_client.schema.keys import key_words
from tests.profiles import examples

# How many positions are compared with the program; tests/README.md says how to try 10^8 draws.
POSITIONS = int(os.environ.get("MIXSERVE_FEW_POSITIONS", "20000"))
LAST = 2**63 - 2
ONE_SIZE = (64,)
LENGTHS = st.one_of(
    st.integers(1, 3),
    st.integers(1, 2**31 - 1),
    st.sampled_from((2**16, 2**16 + 1, 2**31 - 1, 2**31, 2**33 + 5, 2**62)),
)
WEIGHTS = st.one_of(
    st.just(0.0), st.floats(1e-6, 1.0), st.integers(1, 10).map(float), st.sampled_from((1e-30, 1e-44, 1e-60, 1e-300))
)
words = st.integers(0, 2**32 - 1)
starts = st.one_of(st.integers(0, 100), st.integers(2**32 - 50, 2**32 + 50), st.integers(0, LAST - 64))


def without_few(planner: AnyPlanner) -> AnyPlanner:
    """The same planner, which plans with programs only."""
    assert isinstance(planner, Planner)
    found = copy(planner)
    found._few = copy(planner._few)
    found._few.most = 0
    found._leaves = copy(planner._leaves)
    found._leaves.nested = {
        number: without_few(inner) if isinstance(inner, Planner) else inner
        for number, inner in found._leaves.nested.items()
    }
    return found


def assert_plans_equal(found: Plan, expected: Plan) -> None:
    for got, wanted in zip(found, expected, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)


@st.composite
def planners(draw_: st.DrawFn, depth: int = 1) -> Planner:
    count = draw_(st.integers(1, 8))
    weights = draw_(st.lists(WEIGHTS, min_size=count, max_size=count).filter(lambda some: max(some) > 1e-7))
    lengths = draw_(st.lists(LENGTHS, min_size=count, max_size=count))
    nested: dict[int, AnyPlanner] = {}
    if depth and draw_(st.booleans()):
        nested[draw_(st.integers(0, count - 1))] = draw_(planners(depth=depth - 1))
    return Planner(normalised(weights), lengths, nested, keyed=draw_(st.booleans()), sizes=ONE_SIZE)


@settings(max_examples=examples(200), deadline=None)
@given(planner=planners(), key=st.tuples(words, words), start=starts, data=st.data())
def test_few_positions_are_planned_as_many_are(planner, key, start, data):
    size = data.draw(st.integers(1, planner._few.most))
    key = np.array(key, np.uint32)
    positions = np.arange(start, start + size, dtype=np.uint64)
    found, programs = planner.plan(key, start, size), without_few(planner)
    assert_plans_equal(found, programs.plan_each(key, positions))
    many = programs.plan_each(key, np.arange(start, start + 64, dtype=np.uint64))
    assert_plans_equal(found, many.part(0, size))


@settings(max_examples=examples(100), deadline=None)
@given(planner=planners(), data=st.data())
def test_positions_in_any_order_and_each_under_its_own_key(planner, data):
    size = data.draw(st.integers(1, planner._few.most))
    positions = np.array(data.draw(st.lists(st.integers(0, LAST), min_size=size, max_size=size)))
    keys = np.array(data.draw(st.lists(st.tuples(words, words), min_size=size, max_size=size)), np.uint32)
    programs = without_few(planner)
    assert_plans_equal(planner.plan_each(keys, positions), programs.plan_each(keys, positions))
    assert_plans_equal(planner.plan_each(keys[0], positions), programs.plan_each(keys[0], positions))


@settings(max_examples=examples(40), deadline=None)
@given(weights=st.lists(st.tuples(WEIGHTS, WEIGHTS), min_size=3, max_size=3), key=words, data=st.data())
def test_few_positions_under_a_schedule(weights, key, data):
    first, *later = (normalised((1e-3 + one, other, 0.5)) for one, other in weights)
    borders = sorted(data.draw(st.sets(st.integers(1, 30), min_size=2, max_size=2)))
    schedule = Schedule([Entry(0, first), *map(Entry, borders, later)])
    one = Planner(first, [5, 2**33, 7], sizes=ONE_SIZE)
    found = ScheduledPlanner(schedule, Planners(one, first)).plan(key_words(key), 0, 40)
    expected = ScheduledPlanner(schedule, Planners(without_few(one), first))
    expected._planners._first.reweight = lambda all_shares: [without_few(p) for p in one.reweight(all_shares)]
    assert_plans_equal(found, expected.plan(key_words(key), 0, 40))


def test_a_mixture_in_epoch_mode_inside():
    inner = EpochPlanner(Sampling(Schedule([Entry(0, normalised((1, 2)))]), "epoch", block_size=16), [7, 9])
    planner = EpochPlanner(
        Sampling(Schedule([Entry(0, normalised((1, 1)))]), "epoch", block_size=16),
        [100, 30],
        {0: Planner((0.25, 0.75), (10, 20), sizes=ONE_SIZE), 1: inner},
    )
    whole = planner.plan(key_words(3), 0, 200)
    for start in range(0, 190, 7):
        assert_plans_equal(planner.plan(key_words(3), start, 5), whole.part(start, start + 5))


@given(st.lists(st.tuples(words, words, words, words), min_size=1, max_size=40))
def test_words_in_lanes_are_hashed_as_by_numpy(lanes):
    columns = np.array(lanes, np.uint64).T
    key0, key1, high, low = map(pack, columns)
    found = threefry_lanes((key0, key1), (high, low), spread([1] * len(lanes)))
    key0, key1, high, low = columns.astype(np.uint32)
    for got, wanted in zip(found, threefry((key0, key1), (high, low)), strict=True):
        assert list(unpack_lanes(got, len(lanes))) == wanted.tolist()


def test_the_scores_of_all_words_are_within_a_quarter_of_the_margin():
    """Only a word's upper 23 bits count, so these are all scores before the weight is added."""

    def gumbels() -> np.ndarray:
        # As `jax.random.gumbel` does with a word; the next test compares it with the program of the scores.
        bits = jax.lax.iota(jnp.uint32, 1 << 23) | jnp.uint32(0x3F800000)
        uniform = jax.lax.bitcast_convert_type(bits, jnp.float32) - 1
        uniform = jnp.maximum(jnp.finfo(jnp.float32).tiny, uniform)
        return np.asarray(jax.jit(lambda u: -jnp.log(-jnp.log(u)))(uniform))

    found = in_a_clean_thread(gumbels)
    exact = np.arange(1 << 23) * 2.0**-23
    exact[0] = few._LEAST * 2.0**-23
    error = np.abs(found - -np.log(-np.log(exact))).max()
    rounding = 2.0**-18  # of a sum with the logarithm of a weight, which is above -128
    assert error + rounding < MARGIN / 8


@pytest.mark.parametrize("shares", [(0.1, 0.2, 0.3, 0.4), (1e-38, 1.0, 1e-45)])
def test_the_scores_of_the_program_are_within_a_quarter_of_the_margin(shares):
    planner = Planner(normalised(shares), [10] * len(shares), sizes=ONE_SIZE)
    key = key_words(5)
    size = 1 << 12
    scores = np.frombuffer(planner.score_words(key, size), np.float32).reshape(size, -1)
    zero, positions = np.zeros(size, np.uint32), np.arange(size, dtype=np.uint32)
    at = threefry((key[:1], key[1:]), (zero, positions))
    of_source = threefry(at, (zero, zero))
    for source, weight in enumerate(planner.log_weights):
        left, right = threefry(of_source, (zero, zero + np.uint32(source)))
        uniform = ((left ^ right) >> np.uint32(9)) * 2.0**-23
        exact = float(weight) - np.log(-np.log(np.maximum(uniform, np.finfo(np.float32).tiny)))
        assert (np.abs(scores[:, source] - exact) < MARGIN / 8).all()


@pytest.mark.parametrize("shares", [(0.1, 0.2, 0.3, 0.4), (0.5, 0.0, 0.5), (1e-6, 0.3, 0.7, 1e-3, 0.2, 0.1)])
def test_many_draws_are_those_of_the_program(shares):
    planner = Planner(normalised(shares), [4096, 2**31 - 1, 7, 2**16 + 1, 1, 3][: len(shares)])
    programs, rng, given_up, planned = without_few(planner), np.random.default_rng(7), 0, 0
    while planned < POSITIONS:
        start, key = int(rng.integers(0, LAST - 4096)), rng.integers(0, 1 << 32, 2, np.uint32)
        whole, most = programs.plan(key, start, 4096), planner._few.most
        ids = np.stack([whole.source_ids, whole.record_ids])
        found = ids.copy()
        for at in range(0, 4096 - most, most):
            rows = planner._few.draw(key, np.arange(start + at, start + at + most, dtype=np.uint64))
            if rows is None:
                given_up += 1
            else:
                found[:, at : at + most] = rows
        np.testing.assert_array_equal(found, ids)
        planned += 4096
    assert given_up < planned * MARGIN * 2  # about half of MARGIN of the positions have such a pair of scores


def test_where_two_scores_are_close_the_program_decides(monkeypatch):
    planner = Planner((0.1, 0.2, 0.3, 0.4), (10, 20, 30, 40), sizes=ONE_SIZE)
    programs, asked = without_few(planner), list[bool]()
    draw_few = FewDraws.draw

    def noted(*arguments):
        rows = draw_few(*arguments)
        asked.append(rows is None)
        return rows

    monkeypatch.setattr(FewDraws, "draw", noted)
    monkeypatch.setattr(few, "MARGIN", 0.2)
    for start in range(0, 400, 4):
        assert_plans_equal(planner.plan(key_words(9), start, 4), programs.plan(key_words(9), start, 4))
    assert 5 < sum(asked) < 95


@pytest.mark.parametrize("off", [0.0, 2.0**-20, -(2.0**-20), 2.0**-14, -(2.0**-14)])
def test_equal_scores_are_left_to_the_program(off):
    """Weights are made for each position, so that the scores of two sources are equal in float32, or next to it."""
    parts, lengths = Parts(long=False, fetch=False), [100, 200]
    even = Planner((0.5, 0.5), lengths, sizes=ONE_SIZE)
    key, size = key_words(11), 40
    scores = np.frombuffer(even.score_words(key, size), np.float32).reshape(size, 2)
    with pinned_to_cpu():
        for position in range(size):
            gap = float(scores[position, 1] - scores[position, 0])
            weights = np.array([gap + off, 0.0], np.float32)
            at = np.array([position], np.uint64)
            assert FewDraws(weights, lengths, parts).draw(key, at) is None
            wide = np.array([gap + 1.0, 0.0], np.float32)
            rows = FewDraws(wide, lengths, parts).draw(key, at)
            place = on_cpu(np.array([[*key, 0, position]], np.uint32))
            expected = draw(place, on_cpu(wide), on_cpu(np.array(lengths, np.int32)), parts)
            assert rows is not None
            np.testing.assert_array_equal(rows, np.asarray(expected))
