"""Where the time of a batch goes: 256 rows of 8 KiB from 4 arrays, step by step, and what hand-offs remain.

python benchmarks/budget.py
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from typing import Any

import numpy as np

from measure import machine, report
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client, serve
from mixserve_client import MixClient
from mixserve_client.wire.key import key_words

SOURCES, RECORDS, ROW, SIZE = 4, 4096, 2048, 256
ROUNDS, BATCHES = 15, 200
STEP_S = 0.02  # of a trainer, whose batch is there when it comes
STEPS = 60
WAYS: dict[str, dict[str, Any]] = {
    "shared memory": {},
    "bulk TCP": {"shared_memory": False},
    "gRPC alone": {"shared_memory": False, "bulk": False},
}


def make_node() -> MixDataSourcesNode:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 1 << 30, (RECORDS, ROW), np.int32) for _ in range(SOURCES)]
    config = MixDataSourcesConfig(num_sources=SOURCES, weights=(0.1, 0.2, 0.3, 0.4))
    return MixDataSourcesNode(config, [ArraySource({"tokens": part}) for part in parts])


def main() -> None:
    rows: list[dict[str, str]] = []
    for name, taken in in_process().items():
        rows.append({"step": name, "µs per batch": spread(taken), "the reader's context switches per batch": ""})
    context = multiprocessing.get_context("spawn")
    address: Queue[str] = context.Queue()
    server = context.Process(target=hold, args=(address,), daemon=True)
    server.start()
    where = address.get(timeout=120)
    for name, options in WAYS.items():
        with MixClient.connect(where, **options) as client:
            taken, switches = read(client)
            waits = come_late(client)
        rows.append({"step": f"all of it, over {name}", "µs per batch": spread(taken), **switching(switches)})
        rows.append(
            {"step": f"`next` of a batch that is there, {name}", "µs per batch": spread(waits), **switching(None)}
        )
    server.kill()
    notes = [
        machine(),
        f"{SIZE} rows of {ROW * 4} bytes, medians (and quartiles) of {ROUNDS} rounds of {BATCHES} batches",
    ]
    report("budget", "Where the time of a batch goes", rows, notes)


def hold(address: "Queue[str]") -> None:
    server = serve({"train": make_node()})
    address.put(server.address)
    server.wait()


def in_process() -> dict[str, list[float]]:
    """Seconds per batch of each step, in one thread."""
    node = make_node()
    mixture, out, number = node.mixture, {"tokens": np.empty((SIZE, ROW), np.int32)}, 0
    taken: dict[str, list[float]] = {name: [] for name in ("plan", "gather", "all of it, in process")}
    with local_client({"train": node}) as client:
        batches = client.batches(SIZE, key=1)
        next(batches)
        for _ in range(ROUNDS + 1):
            plans: list[Any] = []

            def plan(number: int, plans: list[Any] = plans) -> None:
                plans.append(mixture.blocks.plan(key_words(2), [(number * SIZE, SIZE)]))

            for name, step in (
                ("plan", plan),
                ("gather", lambda at, plans=plans: mixture.host_gather.into(plans[at % BATCHES], out)),
                ("all of it, in process", lambda _: next(batches)),
            ):
                taken[name].append(seconds(step, number))
            number += BATCHES
    return {name: values[1:] for name, values in taken.items()}


def seconds(step: Callable[[int], object], first: int) -> float:
    began = time.perf_counter()
    for number in range(first, first + BATCHES):
        step(number)
    return (time.perf_counter() - began) / BATCHES


def read(client: MixClient) -> tuple[list[float], float]:
    """Seconds per batch in each round, and the context switches of the reader's process per batch."""
    with client.batches(SIZE, key=1) as batches:
        for _ in range(50):
            next(batches)
        before = resource.getrusage(resource.RUSAGE_SELF)
        taken = [seconds(lambda _: next(batches), 0) for _ in range(ROUNDS)]
        after = resource.getrusage(resource.RUSAGE_SELF)
    switches = after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw
    return taken, switches / (ROUNDS * BATCHES)


def come_late(client: MixClient) -> list[float]:
    """Seconds that `next` takes after a step in which the batch has come."""
    waits = list[float]()
    with client.batches(SIZE, key=1) as batches:
        for _ in range(STEPS):
            began = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - began)
            time.sleep(STEP_S)
    return waits[5:]


def spread(taken: list[float]) -> str:
    low, middle, high = (value * 1e6 for value in statistics.quantiles(taken, n=4))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def switching(count: float | None) -> dict[str, str]:
    return {"the reader's context switches per batch": "" if count is None else f"{count:.1f}"}


if __name__ == "__main__":
    main()
