"""A training loop over a fresh stream of batches -> how long it waited, how long its steps took, and what that used."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.common.usage import cpu_seconds, family, forget_peaks, memory_bytes, peak_bytes
from benchmarks.common.work import Batch, accept
from benchmarks.race.contestant import Contestant
from benchmarks.trainer.step import Step

_AT_LEAST = 2
_LIMIT_S = 8.0


@dataclass(frozen=True)
class Times:
    """The seconds of a part of a loop: in all, waiting for batches, in steps, and in `next` at the median."""

    steps: int
    seconds: float
    waited_s: float
    stepped_s: float
    next_p50_s: float


@dataclass(frozen=True)
class Figures(Times):
    """The figures of a round; CPU seconds and memory are None if the system does not tell them."""

    first_s: float  # from opening the stream until the first batch arrived
    cpu_s: float | None  # of the trainer, including its steps, and of its servers
    client_peak_bytes: int | None
    server_peak_bytes: int | None
    client_shared_bytes: int | None


def run_round(
    contestant: Contestant, step: Step, size: int, products: int, key: int, warm_up_s: float, seconds: float
) -> Figures:
    """Train on a fresh stream: the first batch and the steps of `warm_up_s` do not count, those of `seconds` do."""
    opened = time.perf_counter()
    with contestant.open(size, key) as batches:
        batch = next(batches)
        first_s = time.perf_counter() - opened
        accept(batch, size)
        train(batches, step, size, products, warm_up_s)
        servers = [pid for server in contestant.servers for pid in family(server.process.pid)]
        client = family(os.getpid(), without=servers)
        forget_peaks(client + servers)
        before = cpu_seconds(client + servers)
        times = train(batches, step, size, products, seconds)
        after = cpu_seconds(client + servers)
        return Figures(
            **vars(times),
            first_s=first_s,
            cpu_s=None if before is None or after is None else after - before,
            client_peak_bytes=peak_bytes(client),
            server_peak_bytes=peak_bytes(servers),
            client_shared_bytes=memory_bytes(os.getpid(), "RssShmem"),
        )


def train(batches: Iterator[Batch], step: Step, size: int, products: int, seconds: float) -> Times:
    """Take steps for `seconds`, two at least, but for 8 s at most."""
    waits: list[float] = []
    stepped = 0.0
    began = now = time.perf_counter()
    while now - began < seconds or (len(waits) < _AT_LEAST and now - began < _LIMIT_S):
        asked = time.perf_counter()
        batch = next(batches)
        came = time.perf_counter()
        accept(batch, size)
        assert isinstance(batch, np.ndarray)
        step(batch, products)
        now = time.perf_counter()
        waits.append(came - asked)
        stepped += now - came
    return Times(len(waits), now - began, sum(waits), stepped, float(np.median(waits)))
