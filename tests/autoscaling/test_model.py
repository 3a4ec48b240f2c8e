"""The policy in front of simulated replicas and trainers with queues: it finds the right number, and stays there."""

import pytest

from mixserve.autoscaling import Policy
from tests.autoscaling.model import Trainer, World, follow

STEP_S = 2.0
HOUR_S = 3600.0


def trainers(count: int = 8, step_s: float = STEP_S) -> list[Trainer]:
    return [Trainer(step_s) for _ in range(count)]


@pytest.mark.parametrize(
    ("need", "found"), [(0.3, 1), (0.9, 1), (1.6, 2), (2.5, 3), (3.5, 4), (6.3, 7), (7.6, 8), (11.0, 8)]
)
def test_as_many_as_trainers_need(need: float, found: int):
    """Each replica serves one batch after another; `need` of them are as fast as trainers are without waits."""
    world = World(trainers(), service_s=STEP_S * need / 8)
    changes = follow(world, Policy(1, 8), 2 * HOUR_S)
    assert world.replicas == found
    assert len(changes) <= 3
    assert all(change.at_s < 400 for change in changes)


@pytest.mark.parametrize("need", [0.3, 1.5, 3.2])
def test_from_too_many_down_to_what_trainers_need(need: float):
    world = World(trainers(), service_s=STEP_S * need / 8, replicas=8)
    changes = follow(world, Policy(1, 8), 2 * HOUR_S)
    assert need <= world.replicas <= need / 0.7 + 1
    assert len(changes) <= 3
    assert world.see(5.0).wait_share == pytest.approx(0.0, abs=0.02)


def test_up_once_and_down_once_with_the_load():
    world, policy = World(trainers(), service_s=STEP_S * 0.3 / 8), Policy(1, 8)
    assert follow(world, policy, HOUR_S) == []
    world.set_trainers(trainers(48))
    (up,) = follow(world, policy, 2 * HOUR_S)
    assert (up.replicas, world.replicas) == (2, 2)
    world.set_trainers(trainers(8))
    (down,) = follow(world, policy, 3 * HOUR_S)
    assert (down.replicas, world.replicas) == (1, 1)
    world.set_trainers([])
    assert follow(world, policy, 4 * HOUR_S) == []


def test_waits_for_the_trainers_own_network_are_not_mended_by_replicas():
    world = World(trainers(), service_s=0.01, network_s=1.5 * STEP_S)
    changes = follow(world, Policy(1, 8), 3 * HOUR_S)
    assert [change.replicas for change in changes] == [2, 1] * 3  # tried at first, after 30 and 90 minutes
    assert all("hardly helped" in change.why for change in changes[1::2])


def test_waits_for_one_lock_of_all_replicas_stop_it_where_more_do_not_help():
    """Up to three replicas help, then the disk that all of them read from is in use all the time."""
    world = World(trainers(step_s=1.0), service_s=0.5, shared_s=0.5 / 3)
    changes = follow(world, Policy(1, 16), 3 * HOUR_S)
    tried = [change.replicas for change in changes]
    assert tried[:2] == [2, 4]
    assert max(tried) <= 8
    assert world.replicas == 4
    assert len(changes) <= 2 + 2 * 3


def test_replicas_that_make_many_batches_at_a_time():
    world = World(trainers(16), service_s=STEP_S * 2.5 * 8 / 16, lanes=8)
    changes = follow(world, Policy(1, 16), 2 * HOUR_S)
    assert world.replicas == 3
    assert len(changes) <= 3


def test_trainers_that_are_never_satisfied_get_all_replicas():
    world = World(trainers(step_s=0.001), service_s=1.0)
    follow(world, Policy(1, 4), HOUR_S)
    assert world.replicas == 4
