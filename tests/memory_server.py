"""A server of two sources of 100 rows of 16 KiB, in its own process."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns

import numpy as np

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from tests.forked import Forked
from tests.processes import ONE_SIZE


def main(address: str, folder: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 1 << 30, (2, 100, 4096), np.int32)
    config = MixDataSourcesConfig(num_sources=2, weights=(0.7, 0.3), plan_sizes=ONE_SIZE)
    node = MixDataSourcesNode(config, [ArraySource({"tokens": array}) for array in tokens])
    server = serve({"train": node}, address, shared_memory=folder)
    print("serving on", server.address, flush=True)
    sys.stdin.read()


@contextmanager
def memory_server(folder: Path, address: str = "127.0.0.1:0") -> Iterator[Forked]:
    """Accept clients' memory in `folder`."""
    process = Forked(main, address, str(folder), log=folder / f"{monotonic_ns()}.log")
    try:
        yield process
    finally:
        process.kill()
