"""Plans equal the reference bit for bit, at every position, for every cut, and under all of JAX's settings."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.mixture.plan import Planner, buckets
from mixserve.mixture.programs import PLAN_SIZES, PROBE_POSITIONS, forget
from mixserve.mixture.schedule import normalised
from mixserve_client.schema.keys import key_words
from tests.profiles import PROFILE, examples
from tests.reference import draw, draw_one_eagerly

GOLDEN = Path(__file__).with_name("golden_plans.json")
# Every pair of a number of sources, after padding, and a size is a program to compile: a second of a core. The fast
# profile tries numbers without padding, with little and with much of it, and the largest, smallest and a middle size.
COUNTS = st.integers(1, 40) if PROFILE == "thorough" else st.sampled_from((3, 8, 40))
SIZES = PLAN_SIZES if PROFILE == "thorough" else PLAN_SIZES[::2]


def planner_of(weights: tuple[float, ...], lengths: list[int]) -> Planner:
    return Planner(normalised(weights), lengths, sizes=SIZES)


def pairs(planner: Planner, key: int, start: int, size: int) -> list[tuple[int, int]]:
    plan = planner.plan(key_words(key), start, size)
    return list(zip(plan.source_ids.tolist(), plan.record_ids.tolist(), strict=True))


@st.composite
def mixtures(draw_: st.DrawFn) -> tuple[tuple[float, ...], list[int]]:
    count = draw_(COUNTS)
    weight = st.one_of(st.just(0.0), st.floats(1e-6, 1.0), st.integers(1, 10).map(float))
    weights = draw_(st.lists(weight, min_size=count, max_size=count).filter(any))
    lengths = draw_(st.lists(st.integers(1, 10**6), min_size=count, max_size=count))
    return tuple(weights), lengths


sizes = st.one_of(st.integers(1, 40), st.integers(1, 2000))
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=examples(20), deadline=None)
@given(mixture=mixtures(), key=seeds, start=st.integers(0, 2**31), size=sizes)
def test_plan_equals_the_reference(mixture, key, start, size):
    weights, lengths = mixture
    ours = pairs(planner_of(weights, lengths), key, start, size)
    assert ours == draw(weights, lengths, jax.random.key(key), start, size)


def test_plan_equals_the_reference_run_eagerly():
    shares = np.float32([0.5, 0.0, 0.25, 0.25])
    lengths = np.int32([7, 1, 10**6, 300])
    expected = [
        tuple(map(int, draw_one_eagerly(jax.random.key(11), np.uint32(p), jnp.log(shares), lengths)))
        for p in range(2**31 - 50, 2**31 + 50)
    ]
    assert pairs(planner_of((0.5, 0.0, 0.25, 0.25), lengths.tolist()), 11, 2**31 - 50, 100) == expected


@settings(max_examples=examples(30), deadline=None)
@given(mixture=mixtures(), key=seeds, start=st.integers(0, 2**63 - 3000), size=st.integers(2, 2000), data=st.data())
def test_a_plan_equals_its_parts_put_together(mixture, key, start, size, data):
    planner = planner_of(*mixture)
    cut = data.draw(st.integers(1, size - 1))
    whole = pairs(planner, key, start, size)
    assert whole == pairs(planner, key, start, cut) + pairs(planner, key, start + cut, size - cut)


@given(st.integers(1, 20_000))
def test_buckets_cover_a_size_with_little_waste(size):
    found = buckets(size, PLAN_SIZES)
    ends = [at + bucket for at, bucket in found]
    assert [at for at, _ in found] == [0, *ends[:-1]]
    assert size <= ends[-1] <= max(2 * size, PLAN_SIZES[0])
    assert {bucket for _, bucket in found} <= set(PLAN_SIZES)


def test_positions_beyond_32_bits_are_their_own():
    planner = planner_of((1.0, 1.0), [10**6, 10**6])
    starts = (0, 2**31, 2**32, 2**33, 2**40, 2**53, 2**62)
    plans = {tuple(pairs(planner, 3, start, 16)) for start in starts}
    assert len(plans) == len(starts)


def test_a_plan_across_2_to_the_32_equals_its_positions_alone():
    planner = planner_of((1.0, 2.0), [1000, 1000])
    start = 2**32 - 5
    assert pairs(planner, 3, start, 10) == [pairs(planner, 3, start + i, 1)[0] for i in range(10)]


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.threefry_partitionable(False),
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.numpy_dtype_promotion("strict"),
    ],
)
def test_jax_settings_do_not_reach_plans(setting):
    weights, lengths = (0.3, 0.7), [50, 60]
    expected = pairs(planner_of(weights, lengths), 5, 100, 64)
    words = planner_of(weights, lengths).score_words(key_words(5), PROBE_POSITIONS)
    forget()
    with setting():
        planner = planner_of(weights, lengths)
        assert pairs(planner, 5, 100, 64) == expected
        assert planner.score_words(key_words(5), PROBE_POSITIONS) == words
        traced = jax.jit(lambda start: planner.plan_traced(key_words(5), start, 64))(np.int32(100))
        assert list(map(tuple, np.asarray(traced).T.tolist())) == expected


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text()), ids=lambda case: f"key={case['key']}")
def test_golden_plans(case):
    planner = planner_of(tuple(case["weights"]), case["lengths"])
    plan = planner.plan(key_words(case["key"]), case["start"], len(case["sources"]))
    assert plan.source_ids.tolist() == case["sources"]
    assert plan.record_ids.tolist() == case["records"]


def test_zero_weights_are_never_drawn():
    assert {source for source, _ in pairs(planner_of((0.0, 1.0, 0.0), [5, 5, 5]), 1, 0, 4096)} == {1}


def test_shares_come_out():
    drawn = np.array(pairs(planner_of((0.1, 0.2, 0.7), [3, 3, 3]), 1, 0, 40_000))[:, 0]
    assert np.bincount(drawn) / 40_000 == pytest.approx([0.1, 0.2, 0.7], abs=0.012)
