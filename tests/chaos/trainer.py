"""A trainer in a process of its own: it reads batches, and says of each what came and how long it waited.

Its lines are `batch NUMBER DIGEST WAIT_S LATE`, where LATE counts the errors of `timeout_s` before the batch came, and
at last `done`. It uses the client alone.
"""

import hashlib
import inspect
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mixserve_client import DeadlineExceeded, MixClient

HAS_CHECKSUMS = "checksum" in inspect.signature(MixClient.connect).parameters
PATIENCE_S = 300


class Way(NamedTuple):
    """How a trainer reads."""

    name: str
    bulk: bool
    timeout_s: float | None
    reads: str  # "iterator", "calls" or "positions"


WAYS = (
    Way("iterator, gRPC", False, None, "iterator"),
    Way("iterator, bulk", True, None, "iterator"),
    Way("iterator, bulk, timeout_s", True, 3.0, "iterator"),
    Way("single calls, gRPC, timeout_s", False, 3.0, "calls"),
    Way("positions, bulk", True, None, "positions"),
    Way("iterator, gRPC, timeout_s", False, 3.0, "iterator"),
    Way("single calls, bulk", True, None, "calls"),
)


def digest(batch: Mapping[str, Any]) -> str:
    """Of the names, dtypes, shapes and bytes of a batch."""
    found = hashlib.blake2b(digest_size=16)
    for name, array in sorted(batch.items()):
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def positions(key: int, number: int, size: int) -> np.ndarray:
    """Positions in no order, of batch `number`."""
    return np.random.default_rng((key, number)).integers(0, 1_000_000, size)


def reader(client: MixClient, way: Way, key: int, size: int) -> Callable[[int], Mapping[str, Any]]:
    """What reads the batch of a number."""
    if way.reads == "iterator":
        batches = client.batches(batch_size=size, key=key, timeout_s=way.timeout_s)
        return lambda _: next(batches)
    if way.reads == "calls":
        return lambda number: client.get_batch_at(number * size, size, key, timeout_s=way.timeout_s)
    return lambda number: client.get_batch_by_positions(positions(key, number, size), key, timeout_s=way.timeout_s)


def main(addresses: list[str], way: int, key: int, count: int, size: int, step_s: float, checksum: bool) -> None:
    """Read `count` batches of `size` rows under `key`, and compute for `step_s` seconds on average after each."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    found, steps = WAYS[way], random.Random(key)
    options: dict[str, Any] = {"bulk": found.bulk, "patience_s": PATIENCE_S, "shared_memory": False}
    with MixClient.connect(addresses, **options, **({"checksum": True} if checksum else {})) as client:
        read = reader(client, found, key, size)
        for number in range(count):
            began, late = time.monotonic(), 0
            while True:
                try:
                    batch = read(number)
                    break
                except DeadlineExceeded:
                    assert found.timeout_s is not None
                    late += 1
            print(f"batch {number} {digest(batch)} {time.monotonic() - began:.3f} {late}", flush=True)
            del batch
            time.sleep(steps.uniform(0, 2 * step_s))
    print("done", flush=True)
