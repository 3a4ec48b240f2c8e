"""The server that is attacked: `benchmarks.common.server` holds `serve()` open."""

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.attacks.mixtures import HANGS, ROW_BYTES, ROWS, SLOW, TRAIN
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource
from mixserve import serve as serve_nodes

_SLOW_S, _HANGS_S = 0.05, 1e6


class _Waits:
    """Records that take `seconds` each, from the moment when `waits` is set: the server reads some while it starts."""

    def __init__(self, seconds: float):
        self.waits = False
        self._seconds = seconds

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {"x": np.full(16, at, np.int32)}

    def __getitems__(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        if self.waits:
            time.sleep(self._seconds * len(ids))
        return [self[int(at)] for at in ids]


@contextmanager
def serve(**options: Any) -> Iterator[str]:
    """A server of the three mixtures that keeps sessions; `options` of `mixserve.serve`. Yields its address."""
    logging.basicConfig(level=logging.WARNING)
    rows = np.random.default_rng(0).integers(0, 255, (ROWS, ROW_BYTES), np.uint8)
    slow, hangs = _Waits(_SLOW_S), _Waits(_HANGS_S)
    nodes = {
        TRAIN: _node(ArraySource({"x": rows})),
        SLOW: _node(RandomAccessSource(slow, content_id="slow")),
        HANGS: _node(RandomAccessSource(hangs, content_id="hangs")),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_nodes(nodes, "127.0.0.1:0", shared_memory=False, state_dir=folder, **options) as server,
    ):
        slow.waits = hangs.waits = True
        yield server.address


def _node(source: Any) -> MixDataSourcesNode:
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [source])
