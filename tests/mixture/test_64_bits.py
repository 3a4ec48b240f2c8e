"""Positions and sources across the limits of 31, 32 and 53 bits, compared with Python's big integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, local_client
from mixserve.mixture.plan import _scale
from tests.conftest import assert_batches_equal
from tests.profiles import examples

LENGTHS = (2**40, 1000, 2**31 - 1, 2**31, 2**62 + 12345)
WEIGHTS = (0.3, 0.2, 0.2, 0.2, 0.1)
BORDERS = (0, 2**31, 2**32, 2**33, 2**53, 2**62, 2**63 - 2000)


class Computed:
    """A source of any length whose records are their own ids."""

    def __init__(self, length: int):
        self._length = length

    def __len__(self):
        return self._length

    def element_spec(self):
        return {"id": jax.ShapeDtypeStruct((), np.int64), "low": jax.ShapeDtypeStruct((2,), np.uint16)}

    def take(self, record_ids):
        ids = record_ids.astype(np.int64)
        return {"id": ids, "low": np.stack([ids & 0xFFFF, ids >> 16 & 0xFFFF], axis=1).astype(np.uint16)}


def make_node() -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=len(LENGTHS), weights=WEIGHTS, plan_sizes=(16, 1024))
    return MixDataSourcesNode(config, [Computed(length) for length in LENGTHS])


def draw(seed: int, position: int) -> tuple[int, int]:
    """(source, record) of a position, in the terms of the design and Python's integers."""
    words = jnp.array([position >> 32, position & 0xFFFFFFFF], jnp.uint32)
    position_key = threefry_2x32(jax.random.key_data(jax.random.key(seed)), words)
    source_key, record_key, _ = jax.random.split(jax.random.wrap_key_data(position_key), 3)
    log_weights = jnp.log(jnp.asarray(np.float32([weight / sum(WEIGHTS) for weight in WEIGHTS])))
    source = int(jax.random.categorical(source_key, log_weights))
    if LENGTHS[source] < 2**31:
        return source, int(jax.random.randint(record_key, (), 0, LENGTHS[source], dtype=jnp.int32))
    hi, lo = map(int, jax.random.bits(record_key, (2,), jnp.uint32))
    return source, (hi << 32 | lo) * LENGTHS[source] >> 64


@settings(max_examples=examples(40), deadline=None)
@given(border=st.sampled_from(BORDERS), offset=st.integers(-40, 40), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_plans_across_the_borders(border, offset, size, seed):
    start = max(0, border + offset)
    plan = make_node().mixture.planner.plan(np.array([0, seed], np.uint32), start, size)
    ours = list(zip(plan.source_ids.tolist(), plan.record_ids.tolist(), strict=True))
    for i in {0, size // 2, size - 1}:
        assert ours[i] == draw(seed, start + i)


@settings(max_examples=examples(40), deadline=None)
@given(border=st.sampled_from(BORDERS), before=st.integers(1, 300), after=st.integers(1, 300))
def test_batches_across_the_borders_equal_their_parts(border, before, after):
    start = max(0, border - before)
    with local_client({"x": make_node()}) as client:
        whole = client.get_batch_at(start, before + after, 3)
        parts = client.get_batch_at(start, before, 3), client.get_batch_at(start + before, after, 3)
    assert_batches_equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})
    assert (whole["id"] & 0xFFFF == whole["low"][:, 0]).all()


@given(st.integers(0, 2**64 - 1), st.integers(2**31, 2**63 - 1))
def test_scaling_is_exact(fraction, length):
    hi, lo, lengths = (np.array([value], np.uint64) for value in (fraction >> 32, fraction & 0xFFFFFFFF, length))
    assert _scale(hi, lo, lengths).tolist() == [fraction * length >> 64]


def test_all_parts_of_a_long_source_are_drawn():
    plan = make_node().mixture.planner.plan(np.array([0, 1], np.uint32), 0, 20_000)
    records = plan.record_ids[plan.source_ids == 0]
    eighths = np.bincount(records >> 37, minlength=8) / len(records)
    assert eighths == pytest.approx([1 / 8] * 8, abs=0.02)


def test_long_sources_under_trace_are_planned_on_the_host():
    node = make_node()
    narrow = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [Narrow(2**40)])
    key = jax.random.key(3)
    expected = narrow.get_batch_at(2**30, 2, key)  # two rows compile in half the time of three
    assert_batches_equal(jax.jit(lambda s, k: narrow.get_batch_at(s, 2, k))(2**30, key), expected)
    mapped = jax.vmap(lambda s: narrow.get_batch_at(s, 2, key))(jnp.array([5, 2**30]))
    assert_batches_equal({"low": mapped["low"][1]}, expected)
    with jax.enable_x64(True):
        traced = jax.jit(lambda s: node.get_batch_at(s, 20, key))(2**40)
        assert_batches_equal(traced, node.get_batch_at(2**40, 20, key))


class Narrow(Computed):
    """Without the 64-bit field, which JAX's 32 bits cannot hold."""

    def element_spec(self):
        return {"low": super().element_spec()["low"]}

    def take(self, record_ids):
        return {"low": super().take(record_ids)["low"]}
