"""The questions that are asked of the simulation, and its answers as rows of tables."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from benchmarks.fleet.hardware import Host, Machine
from benchmarks.fleet.reader import Load
from benchmarks.fleet.replica import Source
from benchmarks.fleet.service_times import ServiceTimes
from benchmarks.fleet.simulation import Fault, Outcome, Scenario, simulate
from benchmarks.fleet.sizing import (
    NICS,
    SIZES,
    WORKLOADS,
    Need,
    Prices,
    Workload,
    first_limit,
    need,
    rack,
    slice_of,
)

Row = dict[str, Any]
Rows = list[Row]
# Larger fleets are simulated in part: so many trainers, with as many for each replica. Text has many for each.
_MOST_TRAINERS = 256
_LOADS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)
IMAGES = WORKLOADS[1]
# Of what fails: a small fleet whose replicas are as busy as those of a large one.
_SMALL, _SMALL_NIC = 120, 10.0
_FAULT_AT_S = 25.0
_SMALL_WARM_UP = 20  # steps
_COLD_S = 0.5e9  # bytes per second that a cold replica reads


def study(times: ServiceTimes, step: Callable[[str], None] = lambda _: None) -> dict[str, Rows]:
    """All rows, by the names of their tables."""
    found = dict[str, Rows]()
    for name, ask in _QUESTIONS.items():
        step(name)
        found[name] = list(ask(times))
    return found


def _replicas(times: ServiceTimes) -> Iterator[Row]:
    """How many replicas are needed."""
    for workload in WORKLOADS:
        for nic in NICS:
            machine = Machine(nic_gbit=nic)
            first, capacity = first_limit(machine, workload.reply_bytes, times)
            row: Row = {"workload": workload.name, "nic": nic, "first": first, "capacity_s": capacity}
            for size in SIZES:
                row[str(size)] = asdict(need(size, workload, machine, times))
            yield row


def _waits(times: ServiceTimes) -> Iterator[Row]:
    """How long trainers wait with as many."""
    for workload in WORKLOADS:
        simulated = dict[tuple[int, int], Outcome]()  # large fleets have equal parts
        for size in SIZES:
            found = need(size, workload, Machine(), times)
            trainers, replicas = slice_of(found, _MOST_TRAINERS)
            if (trainers, replicas) not in simulated:
                simulated[trainers, replicas] = simulate(_normal(workload, trainers, replicas, Machine()), times)
            outcome = simulated[trainers, replicas]
            yield {
                "workload": workload.name,
                "accelerators": size,
                "replicas": found.replicas,
                "simulated": [trainers, replicas],
                **_waiting(outcome, workload),
                **outcome.busy,
                "first_batch_p99_s": float(np.quantile(outcome.first_batch_s, 0.99)),
                "balance": max(outcome.replies_of) / (sum(outcome.replies_of) / len(outcome.replies_of)),
            }


def _load(times: ServiceTimes) -> Iterator[Row]:
    """Waiting by how busy replicas are."""
    for nic in (10.0, 25.0):
        machine, replicas = Machine(nic_gbit=nic), 2
        _, capacity = first_limit(machine, IMAGES.reply_bytes, times)
        for load in _LOADS:
            trainers = max(1, round(load * replicas * capacity / IMAGES.bytes_s))
            outcome = simulate(_normal(IMAGES, trainers, replicas, machine), times)
            actual = trainers * IMAGES.bytes_s / (replicas * capacity)
            yield {"nic": nic, "load": actual, "trainers": trainers, **_waiting(outcome, IMAGES)}


def _failures(times: ServiceTimes) -> Iterator[Row]:
    """What fails, and what a job waits because of it."""
    found = need(_SMALL, IMAGES, Machine(nic_gbit=_SMALL_NIC), times)
    lost, count = range(rack(found.replicas)), found.replicas
    down_s = times.start_s + 1
    each_s = down_s + 5
    upgrade = [Fault(_FAULT_AT_S + each_s * index, [index], down_s) for index in range(count)]
    cold_s = times.cold_start_s + 6
    cold_upgrade = [
        Fault(_FAULT_AT_S + cold_s * index, [index], times.cold_start_s + 1, cold_s=5.0) for index in range(count)
    ]
    silent = Fault(_FAULT_AT_S, lost, silent=True)
    cases: dict[str, tuple[Row, float]] = {
        "nothing": ({}, 40),
        "a rack is killed": ({"faults": [Fault(_FAULT_AT_S, lost)]}, 40),
        "a rack loses power": ({"faults": [silent]}, 45),
        "a rack loses power, `hedge=True`": ({"faults": [silent], "hedge": True}, 40),
        "a rack loses power, `attempt_s=1`": ({"faults": [silent], "attempt_s": 1.0}, 40),
        "rolling upgrade": ({"faults": upgrade}, _FAULT_AT_S + each_s * count + 5),
        "rolling upgrade, without compiled programs or page cache": (
            {"faults": cold_upgrade, "source": Source(cold_bytes_s=_COLD_S)},
            _FAULT_AT_S + cold_s * count + 5,
        ),
        "all replicas begin with cold disks": ({"source": Source(cold_bytes_s=_COLD_S), "cold_s": 20.0}, 40),
    }
    for name, (changes, seconds) in cases.items():
        scenario = replace(_small(found, seconds), **changes)
        outcome = simulate(scenario, times)
        yield {
            "what": name,
            "replicas": scenario.replicas,
            **_waiting(outcome, IMAGES),
            "waited_s": float(outcome.job_waits.sum()),
            "failovers": outcome.failovers,
            "hedges": outcome.hedges,
        }


def _zones(times: ServiceTimes) -> Iterator[Row]:
    """Three zones, with `zone=` and without, and when one is lost."""
    found = need(_SMALL, IMAGES, Machine(nic_gbit=_SMALL_NIC), times)
    replicas = -(-found.replicas // 3) * 3
    lost = [index for index in range(replicas) if index % 3 == 0]
    fault = [Fault(_FAULT_AT_S, lost, silent=True)]
    for name, changes in {
        "without `zone=`": {},
        "with `zone=`": {"zone_aware": True},
        "with `zone=`, and a zone loses power": {"zone_aware": True, "faults": fault},
    }.items():
        scenario = replace(_small(found, 40), replicas=replicas, zones=3, **changes)
        outcome = simulate(scenario, times)
        yield {"what": name, "replicas": replicas, "other_zone": outcome.other_zone, **_waiting(outcome, IMAGES)}


def _remote(times: ServiceTimes) -> Iterator[Row]:
    """Sources on other servers."""
    found = need(_SMALL, IMAGES, Machine(nic_gbit=_SMALL_NIC), times)
    for share in (0.0, 0.5, 1.0):
        scenario = replace(_small(found, 20), source=Source(remote=share), data_servers=found.replicas)
        outcome = simulate(scenario, times)
        yield {"share": share, "replicas": found.replicas, **_waiting(outcome, IMAGES), **outcome.busy}


def _sweep(times: ServiceTimes) -> Iterator[Row]:
    """Eight runs that read the same rows: how often a replica has the reply that another run has just had."""
    for replicas in (1, 2, 4, 8):
        machine = Machine(nic_gbit=100)
        scenario = replace(_normal(IMAGES, 64, replicas, machine), sweep=8)
        scenario = replace(scenario, load=replace(scenario.load, batch_bytes=2 << 20))
        outcome = simulate(scenario, times)
        yield {"replicas": replicas, "hits": outcome.cache_hits / sum(outcome.replies_of), **outcome.busy}


def _limits(times: ServiceTimes) -> Iterator[Row]:
    """What the fewest replicas have to bear, and their names."""
    for size in SIZES:
        found = need(size, IMAGES, Machine(), times)
        _, capacity = first_limit(Machine(), IMAGES.reply_bytes, times)
        found = replace(found, by_channels=1, load=size * IMAGES.bytes_s / capacity / found.by_bytes)
        yield {
            "accelerators": size,
            "replicas": found.replicas,
            "channels": found.channels,
            "memory": found.memory_bytes(times),
            "load": found.load,
            "look_ups_s": found.look_ups_s,
            "dns_bytes": found.dns_bytes,
        }


def _cost(times: ServiceTimes) -> Iterator[Row]:
    """What replicas cost for an accelerator, by what the accelerator costs."""
    machine, prices = Machine(), Prices()
    for workload in WORKLOADS:
        row: Row = {"workload": workload.name}
        for size in SIZES:
            price = need(size, workload, machine, times).replicas * prices.replica(machine)
            row[str(size)] = price / (size * prices.accelerator)
        yield row


_QUESTIONS: dict[str, Callable[[ServiceTimes], Iterator[Row]]] = {
    "replicas": _replicas,
    "waits": _waits,
    "load": _load,
    "failures": _failures,
    "zones": _zones,
    "remote": _remote,
    "sweep": _sweep,
    "limits": _limits,
    "cost": _cost,
}


def _normal(workload: Workload, trainers: int, replicas: int, machine: Machine) -> Scenario:
    """Nothing fails. All read their first window and more, and have 60 steps at least."""
    ahead = max(2, (32 << 20) // workload.batch_bytes)
    load = Load(workload.batch_bytes, workload.step_s, steps=max(60, ahead * 5 // 4), warm_up=max(10, ahead))
    return Scenario(trainers, replicas, load, machine)


def _small(found: Need, seconds: float) -> Scenario:
    load = Load(IMAGES.batch_bytes, IMAGES.step_s, steps=round(seconds / IMAGES.step_s), warm_up=_SMALL_WARM_UP)
    return Scenario(found.accelerators, found.replicas, load, Machine(nic_gbit=_SMALL_NIC), Host())


def _waiting(outcome: Outcome, workload: Workload) -> Row:
    """What a job feels."""
    return {
        "p50_s": float(np.quantile(outcome.waits, 0.5)),
        "p99_s": outcome.p99_s,
        "job_p99_s": float(np.quantile(outcome.job_waits, 0.99)),
        "longest_s": float(outcome.waits.max()),
        "wait_share": outcome.wait_share(workload.step_s),
    }
