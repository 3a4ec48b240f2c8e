"""What one client reads in some seconds, at what cost: an iterator first, and then single calls."""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.common import work
from benchmarks.common.pipes import Server
from benchmarks.common.usage import cpu_seconds, family
from mixserve_client import MixClient

CALLS = 200  # of small batches; a tenth of others
_SMALL = 8  # rows


def read(client: MixClient, size: int, key: int, seconds: float, cpu_s: Callable[[], float]) -> dict[str, float]:
    """GB/s and CPU seconds per GB of an iterator, by the clock `cpu_s`; the median of single calls at successive
    positions, in ms."""
    with client.batches(size, key) as batches:
        next(batches)
        count, cpu, began = 0, cpu_s(), time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            next(batches)
            count += 1
        used = cpu_s() - cpu
    calls: list[float] = []
    for number in range(CALLS if size == _SMALL else CALLS // 10):
        began = time.perf_counter()
        client.get_batch_at(number * size, size, key)
        calls.append(time.perf_counter() - began)
    nbytes = count * size * work.ROW_BYTES
    return {"gbs": nbytes / taken / 1e9, "cpu": used / nbytes * 1e9, "call_ms": float(np.median(calls)) * 1e3}


def read_from(server: Server, client: MixClient, size: int, key: int, seconds: float) -> dict[str, float]:
    """As `read`, with the CPU time of both ends: this process, and `server` with its descendants."""
    pids = family(server.process.pid)
    return read(client, size, key, seconds, lambda: time.process_time() + (cpu_seconds(pids) or 0.0))
