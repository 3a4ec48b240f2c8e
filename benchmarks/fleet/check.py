"""Real replicas on this machine beside their simulation: batches per second, and p99 of the waits in `next`."""

import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.common.children import Child
from benchmarks.fleet.hardware import Machine
from benchmarks.fleet.reader import Load
from benchmarks.fleet.replica import Source
from benchmarks.fleet.service_times import ServiceTimes
from benchmarks.fleet.serving import ROW_BYTES, WAIT_S
from benchmarks.fleet.simulation import Scenario, simulate
from mixserve_client import MixClient

_BATCH_BYTES = 1 << 20
_CORES = 2  # of this machine that servers and readers share
_START_S = 120.0
# What the simulation may be off by.
RATE_WITHIN, P99_WITHIN = 0.15, 1.5


@dataclass(frozen=True)
class Case:
    """So many replicas, and readers: `clients` clients with `readers` each."""

    kind: str  # of `serving.serve`
    replicas: int
    clients: int
    readers: int
    warm_up_s: float
    seconds: float


CASES = (
    # A stream of a replica that all readers share takes 5 s, and the first ones do not begin evenly.
    *(Case("waits", count, 4, 4, 8.0, 8.0) for count in (1, 2, 4, 8)),
    *(Case("arrays", count, 2, 1, 1.0, 4.0) for count in (1, 2)),
)


@dataclass(frozen=True)
class Checked:
    """Measured and simulated: batches per second, and p99 of waits in seconds."""

    case: Case
    measured_rate: float
    simulated_rate: float
    measured_p99_s: float
    simulated_p99_s: float

    @property
    def rate_ratio(self) -> float:
        return self.simulated_rate / self.measured_rate

    @property
    def p99_ratio(self) -> float:
        return self.simulated_p99_s / self.measured_p99_s

    @property
    def is_met(self) -> bool:
        is_rate = 1 - RATE_WITHIN <= self.rate_ratio <= 1 + RATE_WITHIN
        return is_rate and 1 / P99_WITHIN <= self.p99_ratio <= P99_WITHIN

    def plain(self) -> dict[str, Any]:
        """For a file of results."""
        return {**asdict(self), "rate_ratio": self.rate_ratio, "p99_ratio": self.p99_ratio, "is_met": self.is_met}


def check(case: Case, times: ServiceTimes) -> Checked:
    """Measure a case, and simulate it. Raises ChildFailed."""
    rate, waits = measure(case)
    simulated_rate, simulated_waits = simulated(case, times)
    return Checked(case, rate, simulated_rate, _p99(waits), _p99(simulated_waits))


def simulated(case: Case, times: ServiceTimes) -> tuple[float, np.ndarray]:
    """Batches per second and waits, on paper: `_CORES` cores for all."""
    waits = case.kind == "waits"
    scenario = Scenario(
        trainers=case.clients * case.readers,
        replicas=case.replicas,
        load=Load(_BATCH_BYTES, 0.0, steps=600 if waits else 6000, warm_up=100),
        machine=Machine(cores=_CORES, processes=1, nic_gbit=1e6, memory_s=1e15),
        source=Source(wait_s=WAIT_S if waits else 0.0),
        is_one_job=False,
        readers_of_client=case.readers,
        shared_cores=_CORES,
    )
    found, seconds = simulate(scenario, times).together
    return len(found) / seconds, found


def measure(case: Case) -> tuple[float, np.ndarray]:
    """Batches per second of all readers, and how long each `next` took, from real servers over TCP."""
    with ExitStack() as stack:
        # Replicas that wait share a process. Those that copy have one each, as in a fleet.
        processes = 1 if case.kind == "waits" else case.replicas
        each = str(case.replicas // processes)
        children = [
            stack.enter_context(Child("benchmarks.common.server", "benchmarks.fleet.serving", case.kind, each))
            for _ in range(processes)
        ]
        addresses = [address for child in children for address in child.answer(_START_S).split(",")]
        clients = [stack.enter_context(MixClient.connect(addresses, shared_memory=False)) for _ in range(case.clients)]
        return _measure(clients, case)


def _measure(clients: list[MixClient], case: Case) -> tuple[float, np.ndarray]:
    ended, taken = threading.Event(), list[tuple[float, float]]()
    failed = list[BaseException]()

    def read(client: MixClient, key: int) -> None:
        try:
            with client.batches(_BATCH_BYTES // ROW_BYTES, key) as batches:
                while not ended.is_set():
                    came = time.monotonic()
                    next(batches)
                    now = time.monotonic()
                    taken.append((now, now - came))
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=read, args=(client, number * case.readers + reader), daemon=True)
        for number, client in enumerate(clients)
        for reader in range(case.readers)
    ]
    for thread in threads:
        thread.start()
    time.sleep(case.warm_up_s + case.seconds)
    last = time.monotonic()
    ended.set()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    waits = np.array([wait for at, wait in taken if last - case.seconds < at <= last])
    return len(waits) / case.seconds, waits


def _p99(waits: np.ndarray) -> float:
    return float(np.quantile(waits, 0.99))
