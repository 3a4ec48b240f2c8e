"""`python -m benchmarks.balance`: how evenly readers use replicas whose sources read one after another.

Each replica's source waits 20 ms per read, under a lock of its own, so that a replica has 50 reads in a second at most.
Who comes first gets the lock first: with one that others may overtake, readers wait for their luck.
Replicas and readers are threads of one process, each reader with a client of its own; all but the waits costs little.
Prints, for each number of replicas and readers, the reads of all replicas beside those of one, and how far the replica
with the fewest and that with the most are from the mean.
"""

import os
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.common.fair_lock import FairLock
from mixserve import MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve_client import MixClient

REPLICAS, READERS = (1, 2, 4, 8), (1, 8, 16, 32)
WAIT_S = 0.02
BEFORE_S, FOR_S = 10.0, 8.0  # within ten seconds readers have spread
ROWS, ROW_BYTES = 256, 4096  # batches of 1 MiB


class Waiting:
    """Rows of their number, one read at a time."""

    content_id = "waiting"

    def __init__(self) -> None:
        self.reads = 0
        self.is_on = False
        self._lock = FairLock()

    def __len__(self) -> int:
        return 100_000

    def element_spec(self) -> Any:
        return {"x": jax.ShapeDtypeStruct((ROW_BYTES // 4,), np.int32)}

    def take(self, record_ids: np.ndarray) -> dict[str, np.ndarray]:
        if self.is_on:
            with self._lock:
                time.sleep(WAIT_S)
                self.reads += 1
        numbers = record_ids.astype(np.int32)[:, None]
        return {"x": np.broadcast_to(numbers, (len(record_ids), ROW_BYTES // 4)).copy()}


def node(source: Waiting) -> MixDataSourcesNode:
    """A mixture of that source alone."""
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=(4096,)), [source])


class Result(NamedTuple):
    """Reads per second, and of each replica in the time that was measured."""

    reads_per_s: float
    by_replica: list[int]

    @property
    def fewest(self) -> float:
        """How far the replica with the fewest reads is from the mean, as a share of it."""
        return min(self.by_replica) * len(self.by_replica) / sum(self.by_replica) - 1

    @property
    def most(self) -> float:
        return max(self.by_replica) * len(self.by_replica) / sum(self.by_replica) - 1


def measure(replicas: int, readers: int, before_s: float = BEFORE_S, for_s: float = FOR_S) -> Result:
    """Let readers read as fast as they can."""
    with ExitStack() as opened:
        sources = [Waiting() for _ in range(replicas)]
        servers = [opened.enter_context(serve({"train": node(one)}, shared_memory=False)) for one in sources]
        for one in sources:
            one.is_on = True
        addresses, over = [one.address for one in servers], threading.Event()

        def read(key: int) -> None:
            with MixClient.connect(addresses, shared_memory=False) as client:
                batches = client.batches(ROWS, key)
                while not over.is_set():
                    next(batches)

        threads = [threading.Thread(target=read, args=(key,), daemon=True) for key in range(readers)]
        for one in threads:
            one.start()
        time.sleep(before_s)
        began, before = time.monotonic(), [one.reads for one in sources]
        time.sleep(for_s)
        took_s, after = time.monotonic() - began, [one.reads for one in sources]
        over.set()
        for one in sources:
            one.is_on = False
        for one in threads:
            one.join()
        by_replica = [now - then for now, then in zip(after, before, strict=True)]
        return Result(sum(by_replica) / took_s, by_replica)


def main() -> None:
    """Print the table; with arguments, for these numbers of replicas (first) and readers, such as 1,8 16."""
    replicas, readers = (
        tuple(map(int, text.split(","))) if text else default
        for text, default in zip((*sys.argv[1:], "", "")[:2], (REPLICAS, READERS), strict=True)
    )
    print("| readers | replicas | reads/s | beside one replica | fewest of a replica | most | load |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for count in readers:
        one = None
        for number in replicas:
            found = measure(number, count)
            one = one or found
            print(
                f"| {count} | {number} | {found.reads_per_s:.1f} | {found.reads_per_s / one.reads_per_s:.2f} "
                f"| {found.fewest:+.0%} | {found.most:+.0%} | {os.getloadavg()[0]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
