"""How many connections an iterator opens: it keeps its bulk channel, however few of its batches are in flight."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, ServerLimits, serve
from mixserve_client import AsyncMixClient, MixClient
from mixserve_client.grain import RemoteIterDataset
from mixserve_client.jax import device_batches
from mixserve_client.reading import ranges
from tests.conftest import ROUTES
from tests.processes import DEADLINE_S, ONE_SIZE

SIZE, ROW, COUNT, KEY = 64, 1024, 20, 3  # 256 KiB: large enough for shared memory
SKIPS = [(at, at + 1) for at in range(8, 10**4, 100)]

Read = Callable[[MixClient, ExitStack], Iterator[Any]]


@pytest.fixture(scope="module")
def node() -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [ArraySource({"tokens": np.arange(1000 * ROW, dtype=np.int32).reshape(-1, ROW)})])


@pytest.fixture(scope="module")
def server(node: MixDataSourcesNode) -> Iterator[MixServer]:
    with serve({"train": node}) as running:
        yield running


def loop(client: MixClient, opened: ExitStack) -> Iterator[Any]:
    return client.batches(SIZE, KEY, prefetch=0)


def loop_of_workers(client: MixClient, opened: ExitStack) -> Iterator[Any]:
    """A small part of each second batch."""
    return client.batches(SIZE, KEY, shard=(1, 8), worker=(1, 2), prefetch=0)


def loop_with_skips(client: MixClient, opened: ExitStack) -> Iterator[Any]:
    """Some batches consist of two ranges, each of which is a stream."""
    return client.batches(SIZE, KEY, skip=SKIPS, prefetch=0)


def loop_that_restores(client: MixClient, opened: ExitStack) -> Iterator[Any]:
    batches = client.batches(SIZE, KEY, prefetch=0)
    for batch in batches:
        yield batch
        batches.set_state(batches.get_state())


def loop_with_asyncio(client: MixClient, opened: ExitStack) -> Iterator[Any]:
    running = asyncio.new_event_loop()
    opened.callback(running.close)
    other = AsyncMixClient(client)  # which closes the client when it is dropped
    batches = other.batches(SIZE, KEY, prefetch=0)
    while True:
        yield running.run_until_complete(anext(batches))


def loop_with_grain(client: MixClient, opened: ExitStack) -> Iterator[Any]:
    return iter(RemoteIterDataset(client, batch_size=SIZE, key=KEY, prefetch=0))


def loop_with_jax(client: MixClient, opened: ExitStack) -> Iterator[Any]:
    return device_batches(client.batches(SIZE, KEY, prefetch=0), buffer=0)


def counts(client: MixClient) -> tuple[int, int]:
    """The bulk channels that `client` has opened, and those that its server has offered."""
    channels = client.stats()["mixserve_client_connections_total"].value(transport="bulk")
    return int(channels), int(client.server_stats()["mixserve_calls_total"].value(method="GetServer"))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "read",
    [loop, loop_of_workers, loop_with_skips, loop_that_restores, loop_with_asyncio, loop_with_grain, loop_with_jax],
)
def test_an_iterator_without_prefetch_keeps_its_channel(server, route, read: Read):
    with ExitStack() as opened:
        client = opened.enter_context(MixClient.connect(server.address, patience_s=DEADLINE_S, **ROUTES[route]))
        list(client.batches(SIZE, KEY, stop=SIZE))  # the first stream finds out which way there is
        before = counts(client)
        reading = read(client, opened)
        for _ in islice(reading, COUNT):
            pass
        channels, offers = (now - then for now, then in zip(counts(client), before, strict=True))
    # One of its own. The first stream's, which was kept, may be another's for a moment: that is one more.
    assert channels <= (0 if route == "grpc" else 2)
    assert offers <= 2


@pytest.mark.parametrize("route", ["bulk", "shared memory"])
def test_an_iterator_with_a_single_batch_in_flight_keeps_its_channel(server, node, route, monkeypatch):
    monkeypatch.setattr(ranges, "_READ_AHEAD_BYTES", 1)  # as if its batches were large
    with MixClient.connect(server.address, patience_s=DEADLINE_S, **ROUTES[route]) as client:
        list(client.batches(SIZE, KEY, stop=SIZE))
        before = counts(client)
        got = [batch["tokens"].copy() for batch in client.batches(SIZE, KEY, stop=COUNT * SIZE, prefetch=1)]
        assert max(now - then for now, then in zip(counts(client), before, strict=True)) <= 2
        expected = client.get_batch_at(0, COUNT * SIZE, KEY)["tokens"]
    assert np.array_equal(np.concatenate(got), expected)


def test_a_channel_that_the_server_ends_while_the_trainer_computes_costs_no_retry(node):
    limits = ServerLimits(max_connection_age_s=0.1)
    with (
        serve({"train": node}, shared_memory=False, limits=limits) as server,
        MixClient.connect(server.address, shared_memory=False, patience_s=DEADLINE_S) as client,
    ):
        for _ in islice(client.batches(SIZE, KEY, prefetch=0), 5):
            time.sleep(0.3)  # the server ends a channel that is idle and old
        assert client.stats()["mixserve_client_retries_total"].value() == 0
        assert counts(client)[0] >= 3
