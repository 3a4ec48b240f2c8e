"""Mixtures of everything that tensors can hold, and a process that serves them: `-m tests.frameworks.serving`."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve_client.schema.dtypes import DTYPES
from tests.processes import ONE_SIZE

FOREIGN = ("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz")  # dtypes that PyTorch lacks
TYPED = tuple(name for name in DTYPES if name not in FOREIGN)
ROW = 4096  # numbers in a row of the mixture `wide`, whose batches then come through shared memory


def bits(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random bits, including NaNs and subnormal numbers."""
    dtype = DTYPES[name]
    if name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]


def mixed(*records: Any, **options: Any) -> MixDataSourcesNode:
    weights = (0.7, 0.3)[: len(records)]
    config = MixDataSourcesConfig(num_sources=len(records), weights=weights, plan_sizes=ONE_SIZE, **options)
    return MixDataSourcesNode(config, [ArraySource(record) for record in records])


def nodes() -> dict[str, MixDataSourcesNode]:
    """The mixtures by name; the same in every process."""
    rng = np.random.default_rng(0)
    typed = [{name: bits(name, (rows, 3), rng) for name in TYPED} for rows in (20, 30)]
    numbers = [{"id": first + np.arange(50)} for first in (0, 1000)]
    wide = [{"tokens": rng.integers(0, 1 << 30, (40, ROW), np.int32)} for _ in range(2)]
    nested = [{"text": {"ids": rng.integers(0, 9, (9, 4)), "pair": (np.arange(9), np.ones((9, 2)))}} for _ in range(2)]
    return {
        "train": mixed(*numbers),
        "other": mixed(*numbers[::-1]),
        "ends": mixed(*numbers, sampling="epoch", stop="all_exhausted"),
        "typed": mixed(*typed),
        "wide": mixed(*wide),
        "nested": mixed(*nested),
        "foreign": mixed({"odd": bits(FOREIGN[0], (9, 2), rng)}, {"odd": bits(FOREIGN[0], (9, 2), rng)}),
    }


@contextmanager
def served() -> Iterator[str]:
    """The address of a server of `nodes()` in its own process, which ends with the block."""
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().strip()
            assert address, f"the server ended with {process.wait()}"
            yield address
        finally:
            process.kill()


if __name__ == "__main__":
    with serve(nodes(), placement="host") as server:
        print(server.address, flush=True)
        sys.stdin.read()
