"""Plans with replacement: under a schedule each position is drawn by its entry; and the draws are fair."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.plan import Planner
from mixserve.mixture.schedule import Entry, Schedule, normalised
from mixserve.mixture.scheduled import Planners, ScheduledPlanner
from mixserve_client.schema.keys import key_words
from tests.mixture.test_permutation import most
from tests.profiles import examples

LENGTHS = (10, 2000, 33)
SHARES = [normalised(weights) for weights in ([1, 2, 3], [3, 0, 1], [0, 0, 1])]
PLANNERS = {shares: Planner(shares, LENGTHS) for shares in SHARES}


@settings(max_examples=examples(40), deadline=None)
@given(
    starts=st.lists(st.integers(1, 3000), max_size=6, unique=True).map(sorted),
    base=st.sampled_from([0, 2**32 - 1500, 2**62]),
    start=st.integers(0, 3000),
    size=st.integers(1, 1500),
)
def test_every_position_is_drawn_by_the_entry_in_force(starts, base, start, size):
    entries = [Entry(at, SHARES[i % 3]) for i, at in enumerate([0, *(base + s for s in starts)])]
    planner, key = ScheduledPlanner(Schedule(tuple(entries)), Planners(PLANNERS[SHARES[0]], SHARES[0])), key_words(5)
    found = planner.plan(key, base + start, size)
    plain = {shares: PLANNERS[shares].plan(key, base + start, size) for shares in SHARES}
    for place in range(0, size, 7):
        shares = max(entry for entry in entries if entry.start <= base + start + place).shares
        assert found.source_ids[place] == plain[shares].source_ids[place]
        assert found.record_ids[place] == plain[shares].record_ids[place]
    order = np.random.default_rng(size).permutation(size)
    scattered = planner.plan_each(key, order.astype(np.uint64) + np.uint64(base + start))
    assert scattered.source_ids.tolist() == found.source_ids[order].tolist()
    assert scattered.record_ids.tolist() == found.record_ids[order].tolist()
    blocks = PlanBlocks(planner)
    half = size // 2
    ranges = [(base + start, half), (base + start + half, size - half)]
    parts = [blocks.plan(key, [part]).record_ids.tolist() for part in ranges if part[1]]
    assert [record for part in parts for record in part] == found.record_ids.tolist()


@pytest.mark.parametrize("seed", [0, 7])
def test_draws_with_replacement_are_fair(seed):
    """Chi-square of sources, and of records in each, over 200,000 draws at a fixed seed."""
    plan = PLANNERS[SHARES[0]].plan(key_words(seed), 0, 200_000)
    counts, expected = np.bincount(plan.source_ids), 200_000 * np.array(SHARES[0])
    assert ((counts - expected) ** 2 / expected).sum() < most(2)
    for source, length in enumerate(LENGTHS):
        records = np.bincount(plan.record_ids[plan.source_ids == source], minlength=length)
        expected = records.sum() / length
        assert ((records - expected) ** 2).sum() / expected < most(length - 1)
    assert math.isclose(sum(SHARES[0]), 1.0)
