"""mixserve itself: over TCP, over gRPC alone, over a unix socket, through shared memory, and in process.

The server's packages are imported only in a server: the trainer's process has neither JAX nor the data.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common.pipes import Server, start_server
from benchmarks.common.work import ROW_BYTES, WEIGHTS, load
from benchmarks.race.contestant import Contestant
from mixserve_client import MixClient
from mixserve_client.reading.ranges import batches_ahead

if TYPE_CHECKING:
    from mixserve import MixDataSourcesNode

_PREFETCH = 2  # the client's default


def contestant(way: str) -> Contestant:
    """`way`: tcp, grpc, unix, shared-memory or in-process."""
    if way == "in-process":
        from mixserve import local_client

        return _contestant(local_client({"train": node()}))
    server = start_server(__name__, way)
    client = MixClient.connect(server.address, shared_memory=way == "shared-memory", bulk=way != "grpc")
    return _contestant(client, server)


def _contestant(client: MixClient, *servers: Server) -> Contestant:
    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[np.ndarray]]:
        with client.batches(batch_size=size, key=key, prefetch=_PREFETCH) as batches:
            yield (batch["tokens"] for batch in batches)

    def transport() -> str:
        return client.transport.replace(servers[0].address, "ADDRESS") if servers else client.transport

    return Contestant(open_batches, ("mixserve", "jax", "grpcio", "numpy"), ahead, servers, transport)


def ahead(size: int) -> int:
    """How many batches the client prefetches: 32 MiB of small batches."""
    return batches_ahead(size * ROW_BYTES, _PREFETCH)


@contextmanager
def serve(way: str) -> Iterator[str]:
    import mixserve

    with tempfile.TemporaryDirectory() as folder:
        address = f"unix://{folder}/socket" if way == "unix" else "127.0.0.1:0"
        with mixserve.serve({"train": node()}, address) as server:
            yield server.address


def node() -> "MixDataSourcesNode":
    from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode

    sources = [ArraySource({"tokens": records}) for records in load()]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=len(WEIGHTS), weights=WEIGHTS), sources)
