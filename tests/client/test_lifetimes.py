"""A client's objects keep alive what they use, and no more: everything ends when the last of them is dropped."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client, serve
from mixserve_client import AsyncMixClient, MixClient
from mixserve_client.grain import RemoteIterDataset, RemoteMapDataset
from mixserve_client.jax import RemoteMixDataSourcesNode, device_batches, global_batches
from mixserve_client.rpc.resources import ClientResources
from tests.processes import ONE_SIZE
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def connect() -> Iterator[dict[str, Callable[[], MixClient]]]:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    nodes = {"train": MixDataSourcesNode(config, [ArraySource({"x": np.arange(1000, dtype=np.int32)})])}
    with serve(nodes, shared_memory=False) as server:
        yield {"grpc": lambda: MixClient.connect(server.address), "in-process": lambda: local_client(nodes)}


@contextmanager
def without_collector() -> Iterator[None]:
    """Switch off the cycle collector: objects that only it would end fail the test."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name in ("mixserve-fetch", "mixserve-leases")}


def assert_ends(connection: "weakref.ref[ClientResources]", before: set[threading.Thread]) -> None:
    wait_until(lambda: connection() is None, "that the connection is gone")
    wait_until(lambda: threads() <= before, "that its threads end")


def sharding() -> Any:
    return jax.sharding.NamedSharding(jax.make_mesh((1,), ("x",)), jax.sharding.PartitionSpec("x"))


# Objects made from a client, and a use of each.
HANDED_OUT: dict[str, tuple[Callable[[MixClient], Any], Callable[[Any], Any]]] = {
    "session": (lambda client: client.session("a", take_over=True), lambda it: it.next_batch(2)),
    "view of a session": (
        lambda client: client.session("a", take_over=True) and client.view_session("a"),
        lambda it: it.get_state(),
    ),
    "iterator": (lambda client: client.batches(4, 7), next),
    "device batches": (lambda client: device_batches(client.batches(4, 7)), next),
    "global batches": (lambda client: global_batches(client, 4, 7, sharding()), next),
    "map dataset": (lambda client: RemoteMapDataset(client, batch_size=4, key=7), lambda it: it[3]),
    "iter dataset": (lambda client: RemoteIterDataset(client, batch_size=4, key=7), lambda it: next(iter(it))),
    "iterator of a dataset": (lambda client: iter(RemoteIterDataset(client, batch_size=4, key=7)), next),
    "node": (lambda client: RemoteMixDataSourcesNode(client), lambda it: it.get_batch_at(0, 4, jax.random.key(7))),
    "node with a session": (
        lambda client: RemoteMixDataSourcesNode(client, session="b", take_over=True),
        lambda it: it.next_batch(2),
    ),
}


@pytest.mark.parametrize("route", ["grpc", "in-process"])
@pytest.mark.parametrize("kind", HANDED_OUT)
def test_what_a_client_hands_out_outlives_it_and_then_all_ends(connect, route, kind):
    make, use = HANDED_OUT[kind]
    with without_collector():
        before, client = threads(), connect[route]()
        made, connection = make(client), weakref.ref(client.catalog.resources.here)
        del client
        for _ in range(2):
            use(made)
        del made
        assert_ends(connection, before)


async def opened(client: AsyncMixClient) -> Any:
    return await client.session("c", take_over=True)


async def viewed(client: AsyncMixClient) -> Any:
    await opened(client)
    return await client.view_session("c")


async def iterated(client: AsyncMixClient) -> Any:
    return client.batches(4, 7)


async def epoch(client: AsyncMixClient) -> Any:
    return aiter(await opened(client))


ASYNCHRONOUS: dict[str, tuple[Callable[[AsyncMixClient], Any], Callable[[Any], Any]]] = {
    "session": (opened, lambda it: it.next_batch(2)),
    "view of a session": (viewed, lambda it: it.get_state()),
    "iterator": (iterated, anext),
    "epoch of a session": (epoch, anext),
}


@pytest.mark.parametrize("route", ["grpc", "in-process"])
@pytest.mark.parametrize("kind", ASYNCHRONOUS)
def test_what_an_asyncio_client_hands_out_outlives_it_and_then_all_ends(connect, route, kind):
    make, use = ASYNCHRONOUS[kind]

    async def scenario() -> "weakref.ref[ClientResources]":
        client = AsyncMixClient(connect[route]())
        made, connection = await make(client), weakref.ref(client.client.catalog.resources.here)
        del client
        for _ in range(2):
            await use(made)
        return connection

    before = threads()
    connection = asyncio.run(scenario())
    gc.collect()  # asyncio makes reference cycles of its own
    assert_ends(connection, before)


def test_a_session_is_renewed_for_as_long_as_it_is_there_and_no_longer(connect):
    with without_collector():
        before, session = threads(), connect["grpc"]().session("d")
        connection, leases = weakref.ref(session._resources.here), session._leases
        assert list(leases._held) == [session._held]
        session.next_batch(2)
        del session
        assert not leases._held
        assert_ends(connection, before)


def test_an_iterator_that_is_dropped_leaves_nothing_running(connect):
    """Its client lives on."""
    lost = MixClient.connect("127.0.0.1:1", patience_s=600)
    with connect["grpc"]() as client:
        lost.catalog._known[""] = client.mixture()
    with lost, without_collector():
        batches = lost.batches(4, 7)
        batches.start_prefetch()
        fetching = batches.batches._in_flight._fetching
        streams = [weakref.ref(stream) for asked in fetching for stream in asked.streams]
        assert streams
        del batches, fetching
        wait_until(lambda: all(stream() is None for stream in streams), "that it no longer looks for its server")
