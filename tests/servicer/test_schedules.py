"""Readers' schedules share their entries: equal to lists of their own, and their memory is counted once."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve.limits import ServerLimits
from mixserve.mixture.schedule import Entry, Schedule, normalised
from mixserve.servicer.hosted import HostedMixture
from mixserve.servicer.schedule_memory import ScheduleMemory, entry_bytes
from mixserve.servicer.schedules import Schedules
from mixserve_client import InvalidRequest, MixClient, UnknownSchedule
from mixserve_client.schema.schedule import ScheduleEntry, next_id
from tests.processes import ONE_SIZE
from tests.profiles import examples

KEY = np.array([1, 2], np.uint32)
BLOCK = 16
MODES = {"categorical": {}, "epoch": {"sampling": "epoch", "block_size": BLOCK}}


def make(mode: str, records: int = 10**6) -> HostedMixture:
    sources = [ArraySource({"x": np.arange(records)}, name=f"{i}") for i in range(2)]
    config = MixDataSourcesConfig(num_sources=2, weights=(0.5, 0.5), plan_sizes=ONE_SIZE, **MODES[mode])  # type: ignore[arg-type]
    return HostedMixture("train", MixDataSourcesNode(config, sources))


@pytest.fixture(scope="module")
def mixtures() -> dict[str, HostedMixture]:
    return {mode: make(mode) for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=examples(40), deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 20), st.integers(1, 99)), min_size=1, max_size=12),
    most_bytes=st.sampled_from([1 << 30, 400_000]),
)
def test_a_schedule_plans_as_a_list_of_its_own(mixtures, mode, steps, most_bytes):
    """Each step defines a child of one that was defined before, whatever other children that has."""
    mixture, schedules = mixtures[mode], Schedules(most_bytes)
    plain: list[tuple[str, list[ScheduleEntry]]] = [("", [])]
    for which, more, weight in steps:
        parent, entries = plain[which % len(plain)]
        start = entries[-1].start + BLOCK if entries else 0
        added = [ScheduleEntry(start + at * BLOCK, (weight / 100, 1 - weight / 100)) for at in range(more)]
        try:
            found = schedules.define(mixture, parent, added).id
        except UnknownSchedule:  # it was evicted, and its reader sends all of it
            assert most_bytes < 1 << 30
            found = schedules.define(mixture, "", [*entries, *added]).id
        plain.append((found, [*entries, *added]))
        chain = mixture.description.fingerprint
        for entry in plain[-1][1]:
            chain = next_id(chain, entry)
        assert found == chain
    own = mixture.node.mixture
    known = {schedule: kept for (_, schedule), kept in schedules._known.items()}
    for name, entries in plain[1:]:
        if name not in known:
            continue
        whole = Schedule([Entry(start, normalised(weights)) for start, weights in entries])
        assert list(known[name].schedule.entries) == list(whole.entries)
        start, size = max(0, entries[-1].start - 3 * BLOCK), 5 * BLOCK
        theirs = own.planned_by(whole, own.sampling.schedule, own.blocks).planner.plan(KEY, start, size)
        plan = known[name].blocks.planner.plan(KEY, start, size)
        assert plan.source_ids.tobytes() == theirs.source_ids.tobytes()
        assert plan.record_ids.tobytes() == theirs.record_ids.tobytes()
    assert schedules._memory.bytes <= most_bytes or len(known) == 1
    counted = ScheduleMemory()
    for kept in known.values():
        counted.add(own, kept.schedule)
    assert set(counted._blocks) == set(schedules._memory._blocks)
    for kept in known.values():
        schedules._memory.remove(own, kept.schedule)
    assert (schedules._memory.bytes, schedules._memory._blocks) == (0, {})


def grow(schedules: Schedules, mixture: HostedMixture, entries: int) -> str:
    return schedules.define(mixture, "", [ScheduleEntry(at * BLOCK, (0.5, 0.5)) for at in range(entries)]).id


@pytest.mark.parametrize("mode", MODES)
def test_children_of_a_long_schedule_keep_it(mixtures, mode):
    """Each child once counted as a copy, so that it evicted its parent, and every reader sent all entries again."""
    mixture, schedules = mixtures[mode], Schedules(100_000 * entry_bytes(mixtures[mode].node.mixture))
    parent = grow(schedules, mixture, 60_000)
    last = 60_000 * BLOCK
    children = [
        schedules.define(mixture, parent, [ScheduleEntry(last + at * BLOCK, (0.4, 0.6))]).id for at in range(30)
    ]
    for schedule in (parent, *children):
        schedules.get(mixture, schedule)
    blocks = {name for known in schedules._known.values() for name, _ in known.schedule.entries.blocks()}
    assert len(blocks) <= 60_000 // 1024 + 1 + 30


def test_a_schedule_that_is_larger_than_all_may_be_is_refused(mixtures):
    mixture = mixtures["epoch"]
    schedules = Schedules(100 * entry_bytes(mixture.node.mixture))
    with pytest.raises(
        InvalidRequest, match=r"keeps up to \d+ bytes of schedules, and this one of 102 entries would take"
    ):
        grow(schedules, mixture, 101)
    assert schedules.refused.count == 1
    schedules.get(mixture, grow(schedules, mixture, 90))


@pytest.fixture
def small() -> Iterator[MixClient]:
    """A client of a server that keeps about 30 kB of schedules."""
    limits = ServerLimits(schedule_bytes=30_000)
    with (
        serve({"train": make("categorical", 1000).node}, limits=limits, shared_memory=False) as server,
        MixClient.connect(server.address, shared_memory=False) as client,
    ):
        yield client


def test_readers_of_more_schedules_than_are_kept_go_on(small):
    schedules = [[(0, (0.5, 0.5)), *((at, (0.1, 0.9 + number)) for at in range(10, 40))] for number in range(6)]
    readers = [small.batches(8, key=1, schedule=schedule) for schedule in schedules]
    for _ in range(3):
        for reader in readers:
            next(reader)
    with pytest.raises(InvalidRequest, match="raise schedule_bytes in"):
        next(small.batches(8, key=1, schedule=[(at, (0.5, 0.5)) for at in range(200)]))
