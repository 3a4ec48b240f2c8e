"""A fleet on paper: replicas, trainers, what fails and when -> how long trainers wait, and what is busy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import simpy

from benchmarks.fleet.choosing import Chooser
from benchmarks.fleet.hardware import Host, Machine
from benchmarks.fleet.queues import Servers
from benchmarks.fleet.reader import Barrier, Client, Load, Process, Reader
from benchmarks.fleet.replica import Replica, Source
from benchmarks.fleet.service_times import Draw, ServiceTimes
from mixserve_client.rpc.replicas import ATTEMPT_S


class Fault(NamedTuple):
    """Some replicas end at a time, and are back after `for_s` seconds (0: never)."""

    at_s: float
    replicas: Sequence[int]
    for_s: float = 0.0
    silent: bool = False  # as without power; otherwise their connections break
    cold_s: float = 0.0  # for how long rows come from a cold disk afterwards


@dataclass(frozen=True)
class Scenario:
    """What is simulated. Replica i is in zone i mod `zones`, and so is host i."""

    trainers: int
    replicas: int
    load: Load
    machine: Machine = field(default_factory=Machine)
    host: Host = field(default_factory=Host)
    source: Source = field(default_factory=Source)
    zones: int = 1
    zone_aware: bool = False  # whether clients say `zone=`
    hedge: bool = False
    attempt_s: float = ATTEMPT_S
    data_servers: int = 0  # of remote sources
    sweep: int = 1  # so many trainers read the same rows
    is_one_job: bool = True  # whether trainers wait for each other at each step
    readers_of_client: int = 1
    cold_s: float = 0.0  # for how long all replicas read from cold disks
    faults: Sequence[Fault] = ()
    shared_cores: int = 0  # one machine for everything, as the check has
    seed: int = 0


@dataclass
class Outcome:
    """Seconds, but for shares in 0..1. Rows of `waits` are trainers, columns are steps after the warm-up."""

    waits: np.ndarray
    came_at: np.ndarray
    seconds: float
    taken: int
    requested: int
    first_batch_s: np.ndarray
    busy: dict[str, float] = field(default_factory=dict)  # utilization of the busiest replica
    replies_of: list[int] = field(default_factory=list)  # of each replica
    other_zone: float = 0.0  # share of bytes
    failovers: int = 0
    hedges: int = 0
    cache_hits: int = 0

    @property
    def p99_s(self) -> float:
        """The 99 % quantile of one trainer's waits."""
        return float(np.quantile(self.waits, 0.99))

    @property
    def job_waits(self) -> np.ndarray:
        """How long the slowest trainer of each step waited."""
        return self.waits.max(axis=0)

    @property
    def together(self) -> tuple[np.ndarray, float]:
        """The waits that ended while all trainers took batches, and for how many seconds that was.

        As a measurement has it whose readers begin before it, and end after it.
        """
        first, last = float(self.came_at[:, 0].max()), float(self.came_at[:, -1].min())
        if last <= first:
            raise ValueError(f"some trainers had ended at {last:.1f} s when others began to count at {first:.1f} s")
        return self.waits[(self.came_at > first) & (self.came_at <= last)], last - first

    def wait_share(self, step_s: float) -> float:
        """Which part of its time a job of all trainers waits."""
        waited = float(self.job_waits.mean())
        return waited / (waited + step_s) if waited else 0.0


def simulate(scenario: Scenario, times: ServiceTimes) -> Outcome:
    """Run it until all trainers have had their steps."""
    env, draw = simpy.Environment(), Draw(scenario.seed)
    cores = Servers(scenario.shared_cores) if scenario.shared_cores else None
    data = [Replica(env, scenario.machine, times, draw) for _ in range(scenario.data_servers)]
    replicas = [
        Replica(
            env,
            scenario.machine,
            times,
            draw,
            scenario.source,
            zone=_zone(scenario, index),
            remote=data,
            cores=cores,
        )
        for index in range(scenario.replicas)
    ]
    for replica in replicas:
        replica.start(scenario.cold_s)
    readers, clients = _readers(env, scenario, times, replicas, cores, draw)
    for fault in scenario.faults:
        for index in fault.replicas:
            env.process(_fail(env, replicas[index], fault))
    env.run(until=env.all_of([reader.done for reader in readers]))
    return _outcome(env.now, readers, clients, replicas)


def _readers(
    env: simpy.Environment,
    scenario: Scenario,
    times: ServiceTimes,
    replicas: list[Replica],
    cores: Servers | None,
    draw: Draw,
) -> tuple[list[Reader], list[Client]]:
    barrier = Barrier(env, scenario.trainers) if scenario.is_one_job else None
    zones = [replica.zone for replica in replicas]
    readers, clients, nic = list[Reader](), list[Client](), None
    for index in range(scenario.trainers):
        host = index // scenario.host.accelerators
        if index % scenario.host.accelerators == 0:
            nic = Servers(1)
        if index % scenario.readers_of_client == 0:
            zone = _zone(scenario, host)
            seed = scenario.seed * 1_000_003 + index
            chooser = Chooser(
                zones,
                zone if scenario.zone_aware else "",
                seed=seed,
                hedge=scenario.hedge,
                attempt_s=scenario.attempt_s,
            )
            clients.append(Client(env, replicas, chooser, zone))
        readers.append(
            Reader(
                clients[-1],
                scenario.load,
                times,
                draw,
                nic=None if scenario.shared_cores else nic,
                nic_s=scenario.host.nic_s,
                cores=cores,
                shared_key=index // scenario.sweep if scenario.sweep > 1 else None,
                barrier=barrier,
            )
        )
    return readers, clients


def _zone(scenario: Scenario, index: int) -> str:
    return f"zone-{index % scenario.zones}"


def _fail(env: simpy.Environment, replica: Replica, fault: Fault) -> Process:
    yield env.timeout(fault.at_s)
    replica.stop(silent=fault.silent)
    if fault.for_s:
        yield env.timeout(fault.for_s)
        replica.start(fault.cold_s)


def _outcome(seconds: float, readers: list[Reader], clients: list[Client], replicas: list[Replica]) -> Outcome:
    def busiest(of: str) -> float:
        return max(getattr(replica, of).utilization(seconds) for replica in replicas)

    sent = sum(replica.sent_bytes for replica in replicas)
    return Outcome(
        np.array([reader.waits for reader in readers]),
        np.array([reader.came_at for reader in readers]),
        seconds,
        sum(reader.taken for reader in readers),
        sum(reader.requested for reader in readers),
        np.array([reader.started_s for reader in readers]),
        {name: busiest(name) for name in ("nic", "cores", "python", "memory", "lock")},
        [replica.replies for replica in replicas],
        sum(reader.other_zone_bytes for reader in readers) / max(1, sent),
        sum(client.failovers for client in clients),
        sum(client.hedges for client in clients),
        sum(replica.cache_hits for replica in replicas),
    )
