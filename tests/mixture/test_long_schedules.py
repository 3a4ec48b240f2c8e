"""The cost of a schedule does not grow with its entries: neither that of one more entry, nor that of a short plan."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode
from mixserve.servicer.hosted import HostedMixture, plan_limit
from mixserve.servicer.schedules import Schedules
from mixserve_client.schema.schedule import ScheduleEntry
from tests.processes import ONE_SIZE

pytestmark = pytest.mark.alone
BLOCK = 16


def hosted(**options: object) -> HostedMixture:
    sources = [ArraySource({"x": np.arange(10**6)}, name=f"{i}") for i in range(2)]
    config = MixDataSourcesConfig(num_sources=2, weights=(0.5, 0.5), plan_sizes=ONE_SIZE, **options)  # type: ignore[arg-type]
    return HostedMixture("train", MixDataSourcesNode(config, sources))


def least(task: Callable[[int], object]) -> float:
    tries = list[float]()
    for number in range(7):
        began = time.perf_counter()
        task(number)
        tries.append(time.perf_counter() - began)
    return min(tries)


MODES = {
    "categorical": {},
    "epoch": {"sampling": "epoch", "block_size": BLOCK},
    "ending": {"sampling": "epoch", "block_size": BLOCK, "stop": "all_exhausted"},
}


@pytest.mark.parametrize("mode", MODES)
def test_an_entry_more_and_two_positions_far_apart(mode):
    mixture = hosted(**MODES[mode])
    key = np.array([0, 3], np.uint32)
    weights = [(0.5, 0.5), (0.4, 0.6), (0.6, 0.4)]

    def costs(entries: int) -> tuple[float, float]:
        schedules = Schedules()
        last = (entries - 1) * BLOCK
        told = [ScheduleEntry(at, weights[at // BLOCK % 3]) for at in range(0, last + 1, BLOCK)]
        grown = [schedules.define(mixture, "", told).id]

        def add(number: int) -> None:
            entry = ScheduleEntry(last + (number + 1) * BLOCK, weights[number % 3])
            grown.append(schedules.define(mixture, grown[-1], [entry]).id)

        one_more = least(add)
        blocks = schedules.get(mixture, grown[-1]).blocks
        far = least(lambda number: blocks.plan(key, [(number, 1), (last - 20 + number, 1)]))
        return one_more, far

    few, many = costs(20), costs(20_000)
    assert many[0] < 10 * few[0] + 1e-3, (few, many)
    assert many[1] < 10 * few[1] + 5e-3, (few, many)  # it once was 0.2 s


def time_plan(weights: list[tuple[float, float]]) -> float:
    """How long a plan takes in which every position has an entry of its own, under these weights."""
    mixture, schedules = hosted(), Schedules()
    told = [ScheduleEntry(at, pair) for at, pair in enumerate(weights)]
    blocks = schedules.get(mixture, schedules.define(mixture, "", told).id).blocks
    return least(lambda number: blocks.planner.plan(np.array([0, number], np.uint32), 0, len(weights)))


def test_an_entry_for_every_position():
    few = time_plan([(0.5, 0.5), (0.4, 0.6)] * 100)
    many = time_plan([(1.0, 1.0 + number) for number in range(200)])
    assert many < 6 * few, (few, many)  # it once was 30 times as long


def test_others_wait_for_few_entries_at_once():
    mixture, schedules = hosted(), Schedules()

    def at_once(apart: int, entries: int) -> int:
        told = [ScheduleEntry(at * apart, (1.0, 1.0 + at)) for at in range(entries)]
        first = schedules.define(mixture, "", told[:-1]).id
        return plan_limit(schedules.get(mixture, schedules.define(mixture, first, told[-1:]).id).blocks.planner)

    plain = plan_limit(mixture.node.mixture.planner)
    assert at_once(1, 3) == at_once(20_000, 100) == plain
    assert at_once(1, 100) == 256
    assert at_once(1000, 100) > 20 * 1000
    told = [*(ScheduleEntry(at, (1.0, 1.0 + at)) for at in range(100)), ScheduleEntry(10**6, (1.0, 1.0))]
    assert plan_limit(schedules.get(mixture, schedules.define(mixture, "", told).id).blocks.planner) == 256
