"""A trainer in a process of its own, which reads until its time or its batches end.

It prints `at NUMBER DIGEST` for every hundredth batch, and at last `done NUMBER`. It uses the client alone.
"""

import time
from typing import Any

from mixserve_client import MixClient, TlsOptions
from tests.chaos.trainer import digest

EVERY = 100
PATIENCE_S = 120


def main(addresses: list[str], ca: str | None, bulk: bool, key: int, count: int, size: int, lasts_s: float) -> None:
    """Read up to `count` batches of `size` rows from the replicas, for up to `lasts_s` seconds."""
    tls: dict[str, Any] = {} if ca is None else {"tls": TlsOptions(ca=ca)}
    until, number = time.monotonic() + lasts_s, 0
    with MixClient.connect(addresses, bulk=bulk, shared_memory=False, patience_s=PATIENCE_S, **tls) as client:
        batches = client.batches(batch_size=size, key=key)
        while number < count and time.monotonic() < until:
            batch = next(batches)
            if number % EVERY == 0:
                print(f"at {number} {digest(batch)}", flush=True)
                client.get_batch_at(number, size, key)  # a single call, beside the iterator
                batches.get_state()
            number += 1
    print(f"done {number}", flush=True)
