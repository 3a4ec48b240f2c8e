"""What a client counts, against what its caller got and what the server counted."""

import asyncio
import pickle
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer, local_client, serve
from mixserve_client import AsyncMixClient, DeadlineExceeded, InvalidRequest, MixClient, Unavailable
from mixserve_client.grain import RemoteIterDataset
from mixserve_client.jax import device_batches
from mixserve_client.metrics.reading import IteratorFigures, ReadingFigures
from mixserve_client.schema.stats import Metric
from tests.client.test_replicas import KEY, SIZE, Running, Troubled, make, until
from tests.conftest import ROUTES, TRANSPORTS, assert_batches_equal, make_node
from tests.processes import DEADLINE_S

READ_S, WORK_S = 0.02, 0.02


class SlowSource:
    """Takes 20 ms for each read."""

    content_id = "slow"

    def __len__(self) -> int:
        return 1000

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((4,), np.int32)}

    def take(self, record_ids):
        time.sleep(READ_S)
        return {"x": np.repeat(record_ids.astype(np.int32)[:, None], 4, 1)}


def slow_node() -> MixDataSourcesNode:
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [SlowSource()])


class Both:
    """A server with nothing but what the test reads, and a client of it."""

    def __init__(self, opened: ExitStack, node: MixDataSourcesNode, transport: str, **options: Any):
        if transport == "in-process":
            self.client = opened.enter_context(local_client({"train": node}, **options))
        else:
            self.server: MixServer = opened.enter_context(serve({"train": node}))
            options |= ROUTES[transport]
            self.client = opened.enter_context(MixClient.connect(self.server.address, patience_s=DEADLINE_S, **options))


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def running(opened: ExitStack) -> Running:
    return Running(opened)


def value(stats: dict[str, Metric], name: str, **labels: str) -> float:
    return stats[f"mixserve_client_{name}"].value(**labels)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_client_and_server_count_the_same(opened, transport):
    node = make_node()
    client = Both(opened, node, transport, name="trainer").client
    row_bytes = sum(field.nbytes for field in client.mixture().fields)
    batches = list(client.batches(7, key=3, stop=703))  # the last one is short
    batches += [client.get_batch_at(0, 50, key=3), client.get_batch_by_positions([5, 900, 17], key=3)]
    got = client.stats()
    assert value(got, "batches_total", mixture="train") == len(batches) == 103
    assert value(got, "batch_records_total", mixture="train") == sum(len(batch["id"]) for batch in batches) == 756
    nbytes = sum(array.nbytes for batch in batches for array in batch.values())
    assert value(got, "batch_bytes_total", mixture="train") == nbytes == 756 * row_bytes
    (seconds,) = got["mixserve_client_next_seconds"].select(mixture="train")
    assert seconds.count == 101
    waited_s = value(got, "wait_seconds_total") + value(got, "start_seconds_total")
    assert seconds.value <= waited_s  # which has the `next` that found the end, too
    assert waited_s - seconds.value < 1
    told = client.server_stats()
    assert told["mixserve_client_records_total"].value(mixture="train", client="trainer") == 756
    assert told["mixserve_records_total"].value(mixture="train") == 756
    assert told["mixserve_source_bytes_total"].value(mixture="train") == nbytes
    # The client is a reader by its single calls, and one by its iterator.
    assert told["mixserve_readers"].value(client="trainer") == 2
    assert value(got, "info", client="trainer") == 1
    sent = got["mixserve_client_requests_total"]
    if transport == "in-process":
        assert {sample.labels[1] for sample in sent.samples} == {"in-process"}
    else:  # the first stream may go before the way is known
        assert {sample.labels[1] for sample in sent.select(method="GetBatchAt")} == {"grpc"}
        assert {sample.labels[1] for sample in sent.select(method="StreamBatches")} <= {transport, "bulk", "grpc"}
        assert (value(got, "connections_total", transport=transport) > 0) == (
            sent.value(method="StreamBatches", transport=transport) > 0
        )
    calls = told["mixserve_calls_total"] if transport != "in-process" else None
    if calls is not None:
        for method in ("GetBatchAt", "StreamBatches", "StreamPositions"):
            assert calls.value(method=method) == sent.value(method=method), method
    assert value(got, "retries_total") == value(got, "failovers_total") == value(got, "replicas_out") == 0
    assert value(got, "replicas") == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_wait_share_is_that_of_the_loop_here_and_at_the_server(opened, transport):
    client = Both(opened, slow_node(), transport, name="hungry").client
    batches = client.batches(8, key=1, prefetch=0)
    next(batches)
    began, waited_s = time.monotonic(), 0.0
    while time.monotonic() < began + 1.5:
        time.sleep(WORK_S)
        since = time.monotonic()
        next(batches)
        waited_s += time.monotonic() - since
    own = waited_s / (time.monotonic() - began)
    got, told = client.stats(), client.server_stats()
    assert 0.3 < own < 0.9
    assert value(got, "iterator_wait_share", mixture="train") == pytest.approx(own, abs=0.05)
    assert value(got, "iterators", mixture="train") == 1
    assert value(got, "wait_seconds_total", mixture="train") == pytest.approx(waited_s, abs=0.02)
    assert told["mixserve_client_wait_share"].value(mixture="train", client="hungry") == pytest.approx(own, abs=0.1)
    assert told["mixserve_wait_share"].value(mixture="train") == pytest.approx(own, abs=0.1)


def own_share(take: Any) -> float:
    """The share of waits of a loop of 40 steps that computes for 20 ms in each."""
    take()
    began, waited_s = time.monotonic(), 0.0
    for _ in range(40):
        time.sleep(WORK_S)
        since = time.monotonic()
        take()
        waited_s += time.monotonic() - since
    return waited_s / (time.monotonic() - began)


@pytest.mark.parametrize("transport", ["grpc", "bulk", "shared memory"])
def test_a_slow_trainer_of_small_batches_goes_on_to_say_how_long_it_waits(opened, transport, monkeypatch):
    """Thousands of its batches come with one request."""
    monkeypatch.setattr("mixserve_client.reading.in_flight._TELL_EVERY_S", 0.2)
    client = Both(opened, make_node(), transport, name="slow").client
    batches, number = client.batches(4, key=1), 0
    until_then = time.monotonic() + 1.5
    while time.monotonic() < until_then:
        assert_batches_equal(next(batches), client.get_batch_at(4 * number, 4, 1))
        number += 1
        time.sleep(0.01)
    assert 6 <= value(client.stats(), "requests_total", method="StreamBatches") <= 14
    assert client.server_stats()["mixserve_client_wait_share"].value(client="slow") < 0.2


@pytest.mark.parametrize("adapter", ["device", "device ahead", "grain", "asyncio"])
def test_adapters_count_what_their_callers_get_and_wait(opened, adapter):
    client = Both(opened, slow_node(), "bulk").client
    options: dict[str, Any] = {"key": 1, "prefetch": 0}
    if adapter == "asyncio":
        other = AsyncMixClient(client)
        iterator = other.batches(8, **options)
        loop = asyncio.new_event_loop()
        opened.callback(loop.close)
        own = own_share(lambda: loop.run_until_complete(anext(iterator)))
        assert other.stats().keys() == client.stats().keys()
    elif adapter == "grain":
        batches = iter(RemoteIterDataset(client, batch_size=8, **options))
        own = own_share(lambda: next(batches))
    else:
        ahead = device_batches(client.batches(8, **options), buffer=2 if adapter == "device ahead" else 0)
        own = own_share(lambda: next(ahead))
    got = client.stats()
    assert value(got, "batches_total") == 41
    assert value(got, "batch_records_total") == 41 * 8
    assert value(got, "iterator_wait_share") == pytest.approx(own, abs=0.06)
    (seconds,) = got["mixserve_client_next_seconds"].samples
    assert seconds.count == 41


def test_a_cancelled_anext_counts_its_batch_once(opened):
    client = Both(opened, slow_node(), "bulk").client

    async def read() -> None:
        batches = AsyncMixClient(client).batches(8, key=1, prefetch=0)
        await anext(batches)
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_S / 4):
                await anext(batches)
        for _ in range(3):
            await anext(batches)

    asyncio.run(read())
    assert value(client.stats(), "batches_total") == 4


def test_restores_are_start_ups(opened):
    client = Both(opened, slow_node(), "bulk").client
    batches = client.batches(8, key=1, prefetch=0)
    for _ in range(3):
        next(batches)
    state, before = batches.get_state(), client.stats()
    batches.set_state(state)
    next(batches)
    batches.reset()
    next(batches)
    after = client.stats()
    assert value(after, "wait_seconds_total") == value(before, "wait_seconds_total") >= 2 * READ_S
    assert value(after, "start_seconds_total") >= value(before, "start_seconds_total") + 2 * READ_S
    assert value(after, "batches_total") == 5


def test_iterators_that_are_gone_stay_counted(opened):
    client = Both(opened, make_node(), "bulk").client
    for number in range(5):
        for _ in zip(range(20), client.batches(10 + number, key=3), strict=False):
            pass
    copy = pickle.loads(pickle.dumps(client.batches(10, key=3)))
    next(copy)
    got = client.stats()
    assert value(got, "batches_total") == 100
    assert value(got, "batch_records_total") == sum(20 * (10 + number) for number in range(5))
    assert value(got, "iterators") == 0
    # The copy has a client of its own.
    assert value(copy.batches._catalog.resources.here.stats(), "batches_total") == 1
    copy.close()


def test_many_threads_lose_no_count(opened):
    client = Both(opened, make_node(), "in-process").client

    def read(key: int) -> None:
        for number in range(100):
            client.get_batch_at(number, 3, key)
        list(client.batches(5, key=key, stop=500))

    threads = [threading.Thread(target=read, args=(key,)) for key in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        client.stats()
    for thread in threads:
        thread.join()
    got = client.stats()
    assert value(got, "batches_total") == 8 * 200
    assert value(got, "batch_records_total") == 8 * 800
    assert value(got, "requests_total", method="GetBatchAt") == 800


def hang_one_in_use(client: MixClient, one: Troubled, other: Troubled) -> Troubled:
    """Hang the replica that gets the next call, most likely."""
    one.hangs.clear()
    other.hangs.clear()
    before = one.batches
    client.get_batch_at(0, SIZE, KEY)
    used = other if one.batches == before else one
    used.hangs.set()
    return used


def test_failovers_and_retries_are_counted(running):
    (first, one), (second, other) = running.start(make()), running.start(make())
    client = running.connect(one.address, other.address)
    batches, deadline = 0, time.monotonic() + DEADLINE_S
    while not value(client.stats(), "replicas_out"):
        hanging = hang_one_in_use(client, first, second)
        client.get_batch_at(0, SIZE, KEY)
        batches += 2
        assert time.monotonic() < deadline
    got = client.stats()
    assert value(got, "replicas") == 2
    assert value(got, "replicas_out") == value(got, "failovers_total") == 1
    assert value(got, "retries_total") >= 1
    assert value(got, "batches_total") == batches
    assert value(got, "requests_total", method="GetBatchAt") >= batches + 1
    hanging.hangs.clear()
    until(lambda: value(client.stats(), "replicas_out") == 0)


def test_hedges_are_counted(running):
    (first, one), (second, other) = running.start(make()), running.start(make())
    client = running.connect(one.address, other.address, hedge=True, attempt_s=5)
    deadline = time.monotonic() + DEADLINE_S
    while not value(client.stats(), "hedges_total"):
        hang_one_in_use(client, first, second)
        client.get_batch_at(0, SIZE, KEY)
        assert time.monotonic() < deadline


def test_statistics_of_several_replicas_have_the_server_as_a_label(running):
    servers = [running.start(make())[1] for _ in range(2)]
    addresses = [server.address for server in servers]
    client = running.connect(*addresses)
    list(client.batches(SIZE, KEY, stop=80))
    told = client.server_stats()
    records = told["mixserve_records_total"]
    assert records.value(mixture="train") == 80
    assert sum(records.value(server=address) for address in addresses) == 80
    assert told["mixserve_serving"].value(server=addresses[1]) == 1
    servers[0].stop(grace_s=0)
    told = client.server_stats(timeout_s=DEADLINE_S)
    assert {sample.labels for sample in told["mixserve_serving"].samples} == {(addresses[1],)}
    servers[1].stop(grace_s=0)
    with pytest.raises((Unavailable, DeadlineExceeded)):
        client.server_stats(timeout_s=1)


def test_statistics_of_a_server_without_an_answer_end_in_time():
    with MixClient.connect("127.0.0.1:1", patience_s=DEADLINE_S) as client:
        with pytest.raises(DeadlineExceeded):
            client.server_stats(timeout_s=0.3)
        with pytest.raises(InvalidRequest, match="timeout_s"):
            client.server_stats(timeout_s=-1)
        got = client.stats()
        assert value(got, "retries_total", error="Unavailable") >= 1
        assert value(got, "replicas_out") == 1


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 9), st.lists(st.integers(0, 9), max_size=6)), min_size=1, max_size=6
    )
)
def test_records_and_bytes_are_those_of_all_batches(stretches):
    """Iterators whose batches change their size, and are short now and then."""
    reading, figures, records, nbytes, batches = ReadingFigures(), IteratorFigures(), 0, 0, 0
    owner = IteratorFigures()
    reading.add(owner, figures, "train")
    for rows, row_bytes, short in stretches:
        figures.expect(rows, row_bytes)
        for came in (rows, *short):
            figures.note(0.0, 1.0, came)
            records, nbytes, batches = records + came, nbytes + came * row_bytes, batches + 1
            totals = reading.totals()["train"]
            assert (totals.batches, totals.records, totals.bytes) == (batches, records, nbytes)
    del owner, figures
    totals = reading.totals()["train"]
    assert (totals.batches, totals.records, totals.bytes) == (batches, records, nbytes)
    assert totals.waited_s + totals.started_s == batches


def test_the_page_has_all_metrics_and_their_labels(opened):
    page = (Path(__file__).parents[2] / "docs/client.md").read_text("utf-8")
    client = Both(opened, make_node(), "bulk").client
    next(client.batches(4, key=1))
    rows = re.findall(r"^\| `(mixserve_client_\w+)` \| ([\w, ]*)\|", page, re.MULTILINE)
    got = client.stats()
    assert {name: tuple(re.findall(r"\w+", labels)) for name, labels in rows} == {
        name: metric.labels for name, metric in got.items()
    }
    assert all(re.fullmatch(r"mixserve_client_[a-z_]+", name) and metric.help for name, metric in got.items())
    # Servers have other names: sums over all targets must not count twice.
    assert not got.keys() & client.server_stats().keys()
