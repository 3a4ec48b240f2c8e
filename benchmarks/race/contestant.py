"""A contestant's process: `python -m benchmarks.race.contestant MODULE …` runs a round for each line of stdin.

The module's `contestant(…)` describes how to open a stream of batches. Every round opens a fresh stream with its own
key and drops it at the end, so that contestants that wait for their turn do nothing.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.common.pipes import Server, claimed_stdout, send
from benchmarks.common.usage import cpu_seconds, family, forget_peaks, peak_bytes
from benchmarks.common.work import Batch, accept

_WARM_UP_S = 0.1
_WARM_UP_LIMIT_S = 1.0
_ROUND_LIMIT_S = 8.0


@dataclass(frozen=True)
class Contestant:
    """How to open a stream of batches of a size under a key, and what a fair round must know besides."""

    open: Callable[[int, int], AbstractContextManager[Iterator[Batch]]]
    packages: tuple[str, ...]  # their versions belong to the result
    ahead: Callable[[int], int] = lambda _size: 0  # how many batches of a size it may prefetch
    servers: tuple[Server, ...] = ()
    transport: Callable[[], str | None] = lambda: None  # how batches came, if it chooses its transport itself


@dataclass(frozen=True)
class Figures:
    """The figures of a round; CPU seconds and peaks are None if the system does not tell them."""

    batches: int
    seconds: float
    p50_s: float
    p99_s: float
    client_cpu_s: float | None
    server_cpu_s: float | None
    client_peak_bytes: int | None
    server_peak_bytes: int | None
    transport: str | None


def run_round(contestant: Contestant, batch: int, key: int, seconds: float, at_least: int) -> Figures:
    """Time the batches of a fresh stream for `seconds`, until `at_least` of them arrived, but for 8 s at most."""
    with contestant.open(batch, key) as batches:
        warm_up(batches, batch, contestant.ahead(batch))
        # Only now, because opening a stream may start worker processes.
        servers = [pid for server in contestant.servers for pid in family(server.process.pid)]
        client = family(os.getpid(), without=servers)
        forget_peaks(client + servers)
        client_cpu, server_cpu = cpu_seconds(client), cpu_seconds(servers)
        latencies: list[float] = []
        began = last = time.perf_counter()
        while last - began < seconds or (len(latencies) < at_least and last - began < _ROUND_LIMIT_S):
            accept(next(batches), batch)
            now = time.perf_counter()
            latencies.append(now - last)
            last = now
        p50, p99 = np.quantile(latencies, (0.5, 0.99)).tolist()
        return Figures(
            batches=len(latencies),
            seconds=last - began,
            p50_s=p50,
            p99_s=p99,
            client_cpu_s=_since(client_cpu, cpu_seconds(client)),
            server_cpu_s=_since(server_cpu, cpu_seconds(servers)),
            client_peak_bytes=peak_bytes(client),
            server_peak_bytes=peak_bytes(servers),
            transport=contestant.transport(),
        )


def warm_up(batches: Iterator[Batch], size: int, ahead: int) -> None:
    """Consume the prefetched batches and a few more, so that every timed batch is also made within the timed window.

    A slow contestant has no batch ready; then the limit ends the warm-up.
    """
    accept(next(batches), size)
    began, taken = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < _WARM_UP_LIMIT_S and (taken < ahead or elapsed < _WARM_UP_S):
        accept(next(batches), size)
        taken += 1


def _since(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def main() -> None:
    answers = claimed_stdout()
    try:
        module, *arguments = sys.argv[1:]
        contestant: Contestant = importlib.import_module(module).contestant(*arguments)
        send(answers, {"versions": {name: importlib.metadata.version(name) for name in contestant.packages}})
        for line in sys.stdin:
            send(answers, asdict(run_round(contestant, **json.loads(line))))
    except Exception as error:
        traceback.print_exc()
        send(answers, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
