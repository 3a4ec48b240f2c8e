"""Servers to measure, in a process of their own: `serve(kind, count)` for `benchmarks.common.server`.

`arrays` copies rows from memory. `waits` waits 20 ms for each read, one at a time, under a lock of each replica.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from benchmarks.common.fair_lock import FairLock

RECORDS, SOURCES = 16_384, 4
ROW_BYTES = 4096
WAIT_S = 0.02


@contextmanager
def serve(kind: str, count: str = "1") -> Iterator[str]:
    """The addresses of `count` replicas in this process, joined by commas."""
    import mixserve

    with ExitStack() as stack:
        servers = [
            stack.enter_context(mixserve.serve({"train": node(kind)}, "127.0.0.1:0", shared_memory=False))
            for _ in range(int(count))
        ]
        yield ",".join(server.address for server in servers)


def node(kind: str) -> Any:
    """A mixture of records of ROW_BYTES bytes."""
    from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode

    if kind == "waits":
        config = MixDataSourcesConfig(num_sources=1, weights=(1.0,))
        return MixDataSourcesNode(config, [_Waits()])
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 1 << 30, (RECORDS // SOURCES, ROW_BYTES // 4), np.int32) for _ in range(SOURCES)]
    config = MixDataSourcesConfig(num_sources=SOURCES, weights=(0.1, 0.2, 0.3, 0.4))
    return MixDataSourcesNode(config, [ArraySource({"tokens": part}) for part in parts])


class _Waits:
    """Records that say their numbers. A read of some waits for WAIT_S, one at a time; nothing else takes long in it."""

    content_id = "waits"

    def __init__(self) -> None:
        self._lock = FairLock()

    def __len__(self) -> int:
        return 1 << 20

    def element_spec(self) -> Any:
        import jax

        return {"tokens": jax.ShapeDtypeStruct((ROW_BYTES // 4,), np.int32)}

    def take(self, record_ids: np.ndarray) -> dict[str, np.ndarray]:
        with self._lock:
            time.sleep(WAIT_S)
        rows = np.empty((len(record_ids), ROW_BYTES // 4), np.int32)
        rows[:] = np.asarray(record_ids)[:, None]
        return {"tokens": rows}
