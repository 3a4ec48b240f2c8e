"""Batches put on devices by `device_batches`, beside `jax.device_put` of the same batches and of arrays in memory."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import jax
import numpy as np

from benchmarks.common import work
from benchmarks.common.pipes import start_server
from benchmarks.device.table import Table
from benchmarks.measure import ratio
from benchmarks.race.ours import ahead, node
from mixserve import local_client
from mixserve_client import MixClient
from mixserve_client.jax import device_batches

SIZES = (8, 256, 1024)  # records of 8 KiB: 64 KiB, 2 MiB, 8 MiB
_PAUSE_S = 0.05  # a training step, in which the batches of the next turn arrive


def measure(rounds: int) -> Table:
    work.write()
    with ExitStack() as stack:
        clients = {name: stack.enter_context(opened) for name, opened in _clients().items()}
        rows = [_row(name, client, size, rounds) for size in SIZES for name, client in clients.items()]
    return Table(
        "device_batches beside jax.device_put",
        rows,
        [
            f"one field; microseconds per batch, medians over {rounds} rounds in turn; ratios with the middle half. "
            f"Before each turn is a pause of {_PAUSE_S * 1e3:.0f} ms, so that its batches are there",
            "`next`: the batch alone, on the host; `put`: `jax.device_put(next(batches))`; `ready`: `jax.device_put` "
            "of arrays in memory, aligned to 64 bytes",
            "`not copied`: the share of batches whose memory the device uses as it is, which a CPU device can",
        ],
    )


def _clients() -> dict[str, Any]:
    return {
        "in process": local_client({"train": node()}, placement="host"),
        "shared memory": _connect(shared_memory=True),
        "bulk TCP": _connect(shared_memory=False),
    }


@contextmanager
def _connect(**options: bool) -> Iterator[MixClient]:
    platforms = os.environ.get("JAX_PLATFORMS")
    os.environ["JAX_PLATFORMS"] = "cpu"  # the server's: JAX would reserve most of the device's memory for it
    try:
        server = start_server("benchmarks.race.ours", "tcp")
    finally:
        if platforms is None:
            del os.environ["JAX_PLATFORMS"]
        else:
            os.environ["JAX_PLATFORMS"] = platforms
    with MixClient.connect(server.address, **options) as client:
        yield client


def _row(name: str, client: MixClient, size: int, rounds: int) -> dict[str, object]:
    count = max(1, ahead(size) // 4)  # so that all of them are there
    ready = [_aligned(size, number) for number in range(4)]
    streams = [client.batches(size, key) for key in range(3)]
    on_devices = device_batches(streams[2])
    for stream in (*streams[:2], on_devices):
        for _ in islice(stream, 1 + ahead(size)):  # beyond the first window
            pass

    def take(batches: Iterator[Any], put: Callable[[Any], Any] = lambda batch: batch) -> None:
        last = None
        for batch in islice(batches, count):
            last = put(batch)
        jax.block_until_ready(last)

    arrays = ready * -(-count // len(ready))
    taken = _take_turns(
        {
            "next": lambda: take(streams[0]),
            "put": lambda: take(streams[1], jax.device_put),
            "device_batches": lambda: take(on_devices),
            "ready": lambda: take(iter(arrays), jax.device_put),
        },
        rounds,
    )
    kept = [_is_kept(batch, jax.device_put(batch)) for batch in islice(streams[1], 8)]
    for stream in (*streams[:2], on_devices):
        stream.close()
    median = {task: float(np.median(seconds)) / count * 1e6 for task, seconds in taken.items()}
    return {
        "batch": f"{size * work.ROW_BYTES >> 10} KiB",
        "way": name,
        **{task: f"{value:.0f}" for task, value in median.items()},
        "device_batches / put": ratio(taken["device_batches"], taken["put"]),
        "not copied": f"{np.mean(kept):.2f}",
    }


def _take_turns(tasks: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """As `measure.in_turn`, with a pause before each task."""
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(-1, rounds):
        for name, task in tasks.items():
            time.sleep(_PAUSE_S)
            began = time.perf_counter()
            task()
            if number >= 0:
                taken[name].append(time.perf_counter() - began)
    return taken


def _aligned(size: int, value: int) -> dict[str, np.ndarray]:
    memory = np.empty(size * work.ROW_BYTES + 64, np.uint8)
    first = -memory.ctypes.data % 64
    array = memory[first : first + size * work.ROW_BYTES].view(np.int32).reshape(size, work.ROW)
    array[...] = value
    return {"tokens": array}


def _is_kept(batch: Any, put: Any) -> bool:
    array = put["tokens"]
    return array.device.platform == "cpu" and array.unsafe_buffer_pointer() == batch["tokens"].ctypes.data
