"""The simulation of fleets: queues with known results, nothing lost, the same again for the same seed."""

import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fleet import page
from benchmarks.fleet.choosing import Chooser
from benchmarks.fleet.hardware import Machine
from benchmarks.fleet.queues import Servers
from benchmarks.fleet.reader import Load
from benchmarks.fleet.replica import Source
from benchmarks.fleet.service_times import CONSTANT, Draw, Line, ServiceTimes, shape_of
from benchmarks.fleet.simulation import Fault, Scenario, simulate
from benchmarks.fleet.sizing import WORKLOADS, first_limit, need, rack, slice_of

MIB = 1 << 20
TIMES = ServiceTimes(
    plan=Line(20e-6, 1e-11),
    gather=Line(5e-6, 7e-11),
    send=Line(100e-6, 2e-10),
    receive=Line(50e-6, 1e-10),
    plan_shape=(0.5, 1.5),
    gather_shape=CONSTANT,
    gap_shape=(0.8, 1.0, 1.2),
    next_s=(0.0001,),
    socket_bytes=4 * MIB,
    start_s=2.0,
    cold_start_s=5.0,
    connection_bytes=100_000,
)
STEADY = Load(8 * MIB, 0.25, steps=60, warm_up=20)


def poisson_waits(load: float, count: int = 200_000) -> np.ndarray:
    """How long tasks of a second wait for one server if they come at random, `load` of them a second."""
    server, rng, now = Servers(1), random.Random(3), 0.0
    waits = np.empty(count)
    for number in range(count):
        now += rng.expovariate(load)
        waits[number] = server.serve(now, 1.0) - now - 1.0
    return waits


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_with_constant_times_has_the_mean_wait_of_pollaczek_and_khinchine(load):
    assert poisson_waits(load).mean() == pytest.approx(load / (2 * (1 - load)), rel=0.06)


def test_littles_law_holds_for_several_servers():
    servers, rng, now = Servers(3), random.Random(5), 0.0
    came, left = [], []
    for _ in range(50_000):
        now += rng.expovariate(2.5)
        came.append(now)
        left.append(servers.serve(now, rng.uniform(0.5, 1.5)))
    # The mean number in the system, by counting at the times at which somebody comes or goes.
    times = np.concatenate([came, left])
    order = np.argsort(times, kind="stable")
    inside = np.cumsum(np.repeat([1, -1], len(came))[order])
    mean_inside = float((inside[:-1] * np.diff(times[order])).sum() / (times.max() - times.min()))
    rate = len(came) / (times.max() - times.min())
    assert mean_inside == pytest.approx(rate * float(np.mean(np.array(left) - came)), rel=1e-6)
    assert servers.utilization(max(left)) == pytest.approx(2.5 / 3, rel=0.02)


def test_a_task_that_needs_two_queues_holds_both():
    one, two = Servers(1), Servers(2)
    assert two.serve(0.0, 5.0) == 5.0
    assert one.serve(0.0, 1.0, two) == 1.0
    assert one.serve(0.0, 1.0, two) == 2.0
    assert two.serve(0.0, 1.0) == 3.0


def test_a_line_goes_through_what_was_measured():
    sizes = (MIB, 4 * MIB, 16 * MIB)
    found = Line.through(sizes, [2e-4 + size * 3e-10 for size in sizes])
    assert (found.fixed_s, found.byte_s) == (pytest.approx(2e-4), pytest.approx(3e-10))
    assert Line.through(sizes, [size * 3e-10 - 1e-5 for size in sizes]).fixed_s == 0


def test_a_shape_has_the_mean_one_and_the_spread_of_the_times():
    shape = shape_of(list(np.random.default_rng(0).exponential(7.0, 10_000)))
    assert np.mean(shape) == pytest.approx(1, abs=1e-3)
    assert np.std(shape) == pytest.approx(1, abs=0.1)


@settings(max_examples=25, deadline=None)
@given(
    trainers=st.integers(1, 12),
    replicas=st.integers(1, 5),
    size=st.sampled_from((64 << 10, MIB, 3 * MIB, 32 * MIB)),
    step_s=st.sampled_from((0.0, 0.05)),
    fails=st.sampled_from((None, False, True)),
    hedge=st.booleans(),
    zones=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_every_trainer_gets_every_batch_that_it_asks_for(trainers, replicas, size, step_s, fails, hedge, zones, seed):
    faults = () if fails is None else (Fault(0.3, [0], 2.0, silent=fails),)
    load = Load(size, step_s, steps=30)
    scenario = Scenario(
        trainers, replicas, load, zones=zones, zone_aware=zones > 1, hedge=hedge, faults=faults, seed=seed
    )
    outcome = simulate(scenario, TIMES)
    assert outcome.waits.shape == (trainers, 30)
    assert (outcome.waits >= 0).all()
    assert outcome.taken == trainers * 30
    assert outcome.requested >= outcome.taken
    # No more was sent than asked for, and what failures had sent twice: some windows at most.
    per_reply = max(1, MIB // size)
    assert outcome.taken / per_reply - trainers <= sum(outcome.replies_of)


def test_without_failures_each_reply_is_sent_once():
    outcome = simulate(Scenario(8, 3, STEADY), TIMES)
    assert outcome.taken <= sum(outcome.replies_of) <= outcome.requested
    assert sum(outcome.replies_of) - outcome.taken <= 8 * 4  # the windows


def test_the_same_seed_gives_the_same_and_leaves_other_random_numbers_alone():
    scenario = Scenario(8, 3, replace(STEADY, step_s=0.0), is_one_job=False, seed=4)
    random.seed(1)
    first, after = simulate(scenario, TIMES), random.random()
    random.seed(1)
    assert random.random() == after
    assert (simulate(scenario, TIMES).waits == first.waits).all()
    assert (simulate(replace(scenario, seed=5), TIMES).waits != first.waits).any()


def test_replicas_whose_sources_wait_give_what_their_locks_give():
    load = Load(MIB, 0.0, steps=200, warm_up=20)
    scenario = Scenario(16, 1, load, source=Source(wait_s=0.02), is_one_job=False, readers_of_client=4)
    waits, seconds = simulate(scenario, TIMES).together
    assert len(waits) / seconds == pytest.approx(50, rel=0.03)
    assert np.median(waits) == pytest.approx(16 * 0.02, rel=0.05)  # in turn
    waits, seconds = simulate(replace(scenario, replicas=4), TIMES).together
    assert 150 < len(waits) / seconds <= 202


def test_trainers_do_not_wait_until_cards_are_full():
    machine = Machine(nic_gbit=10)
    _, capacity = first_limit(machine, 8 * MIB, TIMES)
    full = capacity / (8 * MIB / 0.25)
    free = simulate(Scenario(int(0.8 * full), 1, STEADY, machine), TIMES)
    assert free.job_waits.max() < 0.01
    busy = simulate(Scenario(int(1.5 * full), 1, STEADY, machine), TIMES)
    # Half of what is asked for comes too late: a step takes 1.5 times as long.
    assert busy.job_waits[20:].mean() == pytest.approx(0.5 * 0.25, rel=0.25)
    assert busy.busy["nic"] > 0.95


def test_a_rack_without_power_is_noticed_after_an_attempt_and_with_hedging_sooner():
    scenario = Scenario(16, 4, replace(STEADY, steps=80, warm_up=4), faults=[Fault(5.0, [0], silent=True)])
    plain = simulate(scenario, TIMES)
    assert 3 < plain.waits.max() < 6
    assert plain.failovers
    hedged = simulate(replace(scenario, hedge=True), TIMES)
    assert hedged.waits.max() < 1
    assert hedged.hedges
    impatient = simulate(replace(scenario, attempt_s=1.0), TIMES)
    assert impatient.waits.max() < 0.5
    killed = simulate(replace(scenario, faults=[Fault(5.0, [0])]), TIMES)
    assert killed.waits.max() < 0.1


def test_a_replica_that_is_back_gets_requests_again():
    load = replace(STEADY, steps=160, warm_up=4)
    gone, back = (simulate(Scenario(8, 2, load, faults=[Fault(5.0, [0], for_s)]), TIMES) for for_s in (0, 5))
    assert back.replies_of[0] > 1.5 * gone.replies_of[0]


def test_clients_that_say_their_zone_stay_in_it():
    scenario = Scenario(96, 12, replace(STEADY, steps=20, warm_up=4), zones=3)  # readers stay where they are
    assert simulate(scenario, TIMES).other_zone == pytest.approx(2 / 3, abs=0.15)
    assert simulate(replace(scenario, zone_aware=True), TIMES).other_zone == 0


def test_readers_of_the_same_rows_share_replies():
    load = Load(2 * MIB, 0.25, steps=80)
    alone = simulate(Scenario(8, 1, load), TIMES)
    shared = simulate(Scenario(8, 1, load, sweep=8), TIMES)
    assert alone.cache_hits == 0
    assert shared.cache_hits / sum(shared.replies_of) > 0.8


def test_rows_of_other_servers_keep_their_cards_busy_too():
    scenario = Scenario(16, 2, STEADY, Machine(nic_gbit=10), data_servers=2)
    own = simulate(scenario, TIMES)
    remote = simulate(replace(scenario, source=Source(remote=1.0)), TIMES)
    assert remote.busy["cores"] > 1.2 * own.busy["cores"]
    assert remote.first_batch_s.mean() > own.first_batch_s.mean()


def test_a_client_asks_sixteen_of_many_and_the_cheapest_of_them():
    chooser = Chooser([""] * 100, seed=3)
    asked = set()
    for _ in range(200):
        index = chooser.choose(1.0)
        assert index is not None
        chooser.note_reply(index, 0.5, 1.0)
        asked.add(index)
    assert len(asked) == 16
    best = min(asked)
    for index in asked - {best}:
        chooser.note_reply(index, 5.0, 2.0)
    assert chooser.choose(2.0) == best


def test_a_stream_counts_until_it_is_dropped():
    chooser = Chooser(["", ""], seed=0)
    first = chooser.choose(1.0)
    assert first is not None
    attempt = chooser.open(first, object())
    assert chooser.choose(1.0) == 1 - first
    del attempt
    assert chooser.choose(1.0) == first


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda one: one.name)
def test_as_many_replicas_as_are_needed_also_bear_the_loss_of_a_rack(workload):
    for size in (10, 1_000, 100_000):
        found = need(size, workload, Machine(), TIMES)
        _, capacity = first_limit(Machine(), workload.reply_bytes, TIMES)
        assert found.by_bytes >= 2
        assert size * workload.bytes_s <= 0.7 * capacity * found.by_bytes
        assert size * workload.bytes_s <= capacity * (found.by_bytes - rack(found.by_bytes))
        assert found.channels <= 5000
        trainers, replicas = slice_of(found, 64)
        assert trainers / replicas == pytest.approx(size / found.replicas, rel=0.3)


def test_tables_take_their_places_in_a_page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("a\n\n<!-- fleet:one -->\nold\n<!-- /fleet:one -->\n\nb\n")
    page.fill(path, {"one": "| new |"})
    page.fill(path, {"one": "| new |"})
    assert path.read_text() == "a\n\n<!-- fleet:one -->\n\n| new |\n\n<!-- /fleet:one -->\n\nb\n"
    with pytest.raises(ValueError, match="0 places for the table 'two'"):
        page.fill(path, {"two": ""})


def test_the_page_has_the_tables_of_the_results(tmp_path):
    results = json.loads(page.RESULTS.read_text())
    path = tmp_path / "scaling.md"
    path.write_text(page.PAGE.read_text())
    tables = page.tables(results, ServiceTimes.load())
    page.fill(path, tables)
    assert path.read_text() == page.PAGE.read_text()
    assert set(re.findall(r"<!-- fleet:(\w+) -->", path.read_text())) == set(tables)


def test_values_are_drawn_with_a_seed():
    assert [Draw(3).of((1.0, 2.0, 3.0)) for _ in range(3)] == [Draw(3).of((1.0, 2.0, 3.0))] * 3
