"""What trainers need and what a replica gives: how many replicas, and what is used up first. Arithmetic only."""

import math
from dataclasses import dataclass

from benchmarks.fleet.hardware import MEMORY_PASSES, Machine
from benchmarks.fleet.service_times import ServiceTimes
from mixserve_client.reading.ranges import reply_batches
from mixserve_client.rpc.fleet import _MOST_ASKED
from mixserve_client.transport.names import DnsLookUp

UTILIZATION = 0.7  # of what is used up first, when nothing has failed
_AFTER_LOSS = 0.95  # when a rack is lost
_RACKS = 8  # replicas are spread over so many
CHANNELS = 5000  # bulk channels of a server (operating.md); further clients read over gRPC
_DNS_HEADER, _DNS_ADDRESS = 60, 16  # bytes of an answer
DNS_DATAGRAM, DNS_LARGEST = 1232, 65_535  # bytes of an answer in a datagram, by the usual limit, and over TCP


@dataclass(frozen=True)
class Workload:
    """What one accelerator takes: a batch of `batch_bytes` every `step_s`."""

    name: str
    batch_bytes: int
    step_s: float

    @property
    def bytes_s(self) -> float:
        """Bytes per second of an accelerator."""
        return self.batch_bytes / self.step_s

    @property
    def reply_bytes(self) -> int:
        """Bytes of a reply."""
        return self.batch_bytes * reply_batches(self.batch_bytes)


WORKLOADS = (
    Workload("text", 256 << 10, 0.5),
    Workload("images", 8 << 20, 0.25),
    Workload("video", 32 << 20, 0.5),
)
SIZES = (10, 100, 1_000, 10_000, 100_000)
NICS = (10, 25, 100, 400)


@dataclass(frozen=True)
class Prices:
    """US dollars per hour: round figures, not those of any provider."""

    core: float = 0.04
    nic_gbit: float = 0.003
    accelerator: float = 2.5

    def replica(self, machine: Machine) -> float:
        return machine.cores * self.core + machine.nic_gbit * self.nic_gbit


def capacities(machine: Machine, reply_bytes: int, times: ServiceTimes) -> dict[str, float]:
    """Bytes per second at which each part of a replica is used up."""
    python_s, gather_s = times.python.at(reply_bytes), times.gather.at(reply_bytes)
    whole_s = python_s + times.copying.at(reply_bytes)
    return {
        "NIC": machine.nic_s,
        "CPU": machine.cores * reply_bytes / whole_s,
        "gathering": max(1, machine.cores // 2) * reply_bytes / max(gather_s, 1e-12),
        "interpreter": machine.processes * reply_bytes / max(python_s, 1e-12),
        "memory's speed": machine.memory_s / MEMORY_PASSES,
    }


def first_limit(machine: Machine, reply_bytes: int, times: ServiceTimes) -> tuple[str, float]:
    """What is used up first, and at how many bytes per second."""
    return min(capacities(machine, reply_bytes, times).items(), key=lambda item: item[1])


@dataclass(frozen=True)
class Need:
    """How many replicas a job needs, for its bytes and for its connections."""

    accelerators: int
    by_bytes: int
    by_channels: int
    first: str  # what is used up first of a replica
    load: float  # utilization of that

    @property
    def replicas(self) -> int:
        return max(self.by_bytes, self.by_channels)

    @property
    def channels(self) -> int:
        """Bulk channels of a replica, when each client has asked all that it asks."""
        return math.ceil(self.accelerators * min(_MOST_ASKED, self.replicas) / self.replicas)

    @property
    def look_ups_s(self) -> float:
        """Look-ups of a name per second."""
        return self.accelerators / DnsLookUp.every_s

    @property
    def dns_bytes(self) -> int:
        """Of an answer that has all addresses."""
        return _DNS_HEADER + _DNS_ADDRESS * self.replicas

    def memory_bytes(self, times: ServiceTimes) -> int:
        """Of a replica's machine for its channels, if all of their buffers are full."""
        return self.channels * (times.connection_bytes + times.socket_bytes)


def rack(replicas: int) -> int:
    """How many replicas are lost with a rack."""
    return math.ceil(replicas / _RACKS)


def need(accelerators: int, workload: Workload, machine: Machine, times: ServiceTimes) -> Need:
    """The fewest replicas, two at least, that are not too busy, nor when a rack is lost; and for their channels."""
    first, capacity = first_limit(machine, workload.reply_bytes, times)
    demand = accelerators * workload.bytes_s / capacity
    by_bytes = max(2, math.ceil(demand / UTILIZATION))
    while demand > _AFTER_LOSS * (by_bytes - rack(by_bytes)):
        by_bytes += 1
    by_channels = 1 if accelerators <= CHANNELS else math.ceil(accelerators * _MOST_ASKED / CHANNELS)
    return Need(accelerators, by_bytes, by_channels, first, demand / max(by_bytes, by_channels))


def slice_of(found: Need, most_trainers: int) -> tuple[int, int]:
    """Trainers and replicas of a part of a fleet with as many trainers for each replica."""
    if found.accelerators <= most_trainers:
        return found.accelerators, found.replicas
    replicas = max(2, round(found.replicas * most_trainers / found.accelerators))
    return round(found.accelerators * replicas / found.replicas), replicas
