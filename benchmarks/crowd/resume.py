"""The time from `client.batches` to its first batch, at a far position and at the beginning."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.common.spread import spread
from benchmarks.common.targets import Row
from benchmarks.common.work import accept
from benchmarks.crowd.scenario import Outcome, Step, ask, children, new_key, server
from mixserve_client import MixClient

MODULE = "benchmarks.crowd.resume"
_SIZE = 256
_FAR = 1 << 62
_PAIRS = 10
_REST_S = 0.05  # lets the server drop what was prefetched after the first batch


def run(repetitions: int, step: Step) -> Outcome:
    with server() as (address, _), children(1, MODULE, address) as clients:
        figures = []
        for number in range(-1, repetitions):  # the first one warms up and does not count
            step(f"resume, repetition {max(number, 0) + 1}")
            figures += ask(clients, [{"keys": [new_key() for _ in range(2 * _PAIRS)]}])
    del figures[0]
    row = Row(
        f"first batch of {_SIZE} from position 2^62 on",
        "from position 0 on",
        "<=",
        1.2,
        spread([one["far"] / one["beginning"] for one in figures]),
    )
    medians = ", ".join(f"{name} {spread([one[name] * 1e3 for one in figures])} ms" for name in ("beginning", "far"))
    return Outcome([row], [f"First batch, medians of {_PAIRS} in each repetition: {medians}."], figures)


@contextmanager
def answering(address: str) -> Iterator[Callable[..., dict[str, float]]]:
    """Answer with the median seconds to the first batch at either position; the positions take turns."""
    with MixClient.connect(address, shared_memory=False) as client:
        client.mixture()

        def answer(keys: list[int]) -> dict[str, float]:
            taken: dict[int, list[float]] = {0: [], _FAR: []}
            for number, key in enumerate(keys):
                # 0 F F 0 0 F F 0 …: each position is second equally often.
                start = 0 if number % 4 in (0, 3) else _FAR
                taken[start].append(_seconds(client, key, start))
                time.sleep(_REST_S)
            return {"beginning": float(np.median(taken[0])), "far": float(np.median(taken[_FAR]))}

        yield answer


def _seconds(client: MixClient, key: int, start: int) -> float:
    began = time.perf_counter()
    with client.batches(_SIZE, key, start=start) as batches:
        accept(next(batches)["tokens"], _SIZE)
        return time.perf_counter() - began
