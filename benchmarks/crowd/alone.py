"""One `get_batch_at` of 8 records by a client that does nothing else, compared with an empty grpcio call."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import numpy as np

from benchmarks.common.spread import spread
from benchmarks.common.targets import Row
from benchmarks.common.work import accept
from benchmarks.crowd import plain
from benchmarks.crowd.scenario import Outcome, Step, ask, children, new_key, server
from mixserve_client import MixClient

MODULE = "benchmarks.crowd.alone"
_SIZE = 8
_STRETCHES, _CALLS = 20, 20
_TARGETS = {"successive": 1.4, "random": 1.6}


def run(repetitions: int, step: Step) -> Outcome:
    with server() as (ours, _), server(plain.MODULE) as (empty, _), children(1, MODULE, ours, empty) as clients:
        figures = []
        for number in range(-1, repetitions):  # the first one warms up and does not count
            step(f"single calls, repetition {max(number, 0) + 1}")
            figures += ask(clients, [{"keys": [new_key(), new_key()]}])
    del figures[0]
    rows = [
        Row(
            f"one get_batch_at of {_SIZE} records, {positions} positions, p50",
            "an empty grpcio call",
            "<=",
            target,
            spread([one[positions] / one["empty"] for one in figures]),
        )
        for positions, target in _TARGETS.items()
    ]
    medians = ", ".join(f"{name} {spread([one[name] * 1e3 for one in figures])} ms" for name in ("empty", *_TARGETS))
    return Outcome(rows, [f"Single calls, p50 of {_STRETCHES * _CALLS} in each repetition: {medians}."], figures)


@contextmanager
def answering(ours: str, empty: str) -> Iterator[Callable[..., dict[str, float]]]:
    """Answer with the p50 in seconds per kind of call; the kinds take turns in short stretches."""
    channel = grpc.insecure_channel(empty)
    nothing = channel.unary_unary(plain.METHOD)
    with MixClient.connect(ours, shared_memory=False) as client:

        def answer(keys: tuple[int, int]) -> dict[str, float]:
            starts = itertools.count(0, _SIZE)
            anywhere = iter(np.random.default_rng(keys[1]).integers(0, 1 << 62, _STRETCHES * _CALLS).tolist())
            kinds: dict[str, Callable[[], object]] = {
                "empty": lambda: nothing(b""),
                "successive": lambda: accept(client.get_batch_at(next(starts), _SIZE, keys[0])["tokens"], _SIZE),
                "random": lambda: accept(client.get_batch_at(next(anywhere), _SIZE, keys[1])["tokens"], _SIZE),
            }
            taken: dict[str, list[float]] = {name: [] for name in kinds}
            for name in [*kinds] * _STRETCHES:
                taken[name] += [_seconds(kinds[name]) for _ in range(_CALLS)]
            return {name: float(np.median(seconds)) for name, seconds in taken.items()}

        yield answer


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
