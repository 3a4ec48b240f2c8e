"""A client that iterates over batches: how many arrived within a window, and over which transport."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.common.children import Child
from benchmarks.common.work import ROW_BYTES, accept
from benchmarks.crowd.scenario import Window, ask, new_key
from mixserve_client import BatchIterator, MixClient

MODULE = "benchmarks.crowd.iterating"
TCP, SHARED_MEMORY = "TCP", "shared memory"


@contextmanager
def answering(address: str, way: str) -> Iterator[Callable[..., dict[str, Any]]]:
    with MixClient.connect(address, shared_memory=way == SHARED_MEMORY) as client:

        def answer(size: int, key: int, begin: float, seconds: float) -> dict[str, Any]:
            with client.batches(size, key) as batches:
                count = counted(batches, size, begin, begin + seconds)
            # Shared memory falls back to gRPC silently; the figures would be those of the wrong transport.
            if client.transport.startswith(SHARED_MEMORY) != (way == SHARED_MEMORY):
                raise RuntimeError(f"batches came over {client.transport}, not over {way}")
            return {"batches": count, "transport": client.transport}

        yield answer


def counted(batches: BatchIterator, size: int, begin: float, end: float) -> int:
    """How many of the batches arrived between two times of `time.monotonic()`."""
    count = 0
    for batch in batches:
        accept(batch["tokens"], size)
        now = time.monotonic()
        if now >= end:
            break
        count += now >= begin
    return count


def total_speed(clients: Sequence[Child], size: int, window: Window) -> float:
    """GB/s of all clients together, each under a new key. Raises ChildFailed."""
    answers = ask(clients, [{"size": size, "key": new_key(), **window.asked()} for _ in clients])
    return sum(answer["batches"] for answer in answers) * size * ROW_BYTES / 1e9 / window.seconds
