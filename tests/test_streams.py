"""Streams end early, stall, are drained and die; the iteration continues, and the server answers the other clients."""

import logging
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import grpc
import numpy as np
import pytest

from mixserve import MixServer, serve
from mixserve.cli.health import probe
from mixserve.serving import bulk_threads, streams
from mixserve.serving.threads import CountingThreads
from mixserve_client import MixClient
from mixserve_client.reading import ranges as ranges_module
from mixserve_client.reading.ranges import StridedRange
from mixserve_client.reading.schedule import Schedule
from mixserve_client.reading.selection import Selection
from mixserve_client.reading.stream import BatchStream
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.transport.buffers import MemoryPool
from mixserve_client.wire import methods
from mixserve_client.wire.batch import decode_batch
from mixserve_client.wire.request import encode_stream_request
from tests.client.test_shared_memory import serving_on
from tests.conftest import ROUTES, assert_batches_equal
from tests.memory_server import memory_server

DEADLINE_S = 60
SIZE, ROW = 8, 4096  # a batch of 128 KiB


def until(condition: Callable[[], Any]) -> Any:
    """The result of `condition` as soon as it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
    return found


def in_threads(tasks: list[Callable[[], Any]]) -> list[threading.Thread]:
    made = [threading.Thread(target=task) for task in tasks]
    for thread in made:
        thread.start()
    return made


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture
def few_threads(monkeypatch) -> int:
    """New servers have two threads for streams, and no more for those that are blocked."""
    monkeypatch.setattr(streams, "THREADS", 2)
    monkeypatch.setattr(streams, "_MOST_BLOCKED", 0)
    monkeypatch.setattr(streams, "_GREEDY_STALLED_S", 2.0)
    monkeypatch.setattr(bulk_threads, "THREADS", 2)
    return 2


def plain(server: MixServer | str, **options: Any) -> MixClient:
    address = server if isinstance(server, str) else server.address
    return MixClient.connect(address, **{"patience_s": DEADLINE_S, "shared_memory": False} | options)


def request(count: int, key: int = 3) -> bytes:
    """Raw bytes that request `count` batches, each in its own reply."""
    return encode_stream_request(StreamRequest(BatchRequest("train", 0, SIZE, key_words(key)), SIZE, count, SIZE))


ENDLESS = 2**40
MANY = 10_000  # replies; 1.3 GB, none of which is kept


def stalled_readers(channel: grpc.Channel, server: MixServer) -> list[Any]:
    """Streams that are never read and that occupy all threads: another stream finds none."""
    ask = channel.unary_stream(methods.STREAM_BATCHES)
    for wait_s in (0.2, 0.5, 1.0, 2.0, 4.0):
        stalled = [ask(request(ENDLESS)) for _ in range(streams.THREADS)]
        time.sleep(wait_s)  # until then connections may still accept data; the next call shows whether they do
        with grpc.insecure_channel(server.address) as other:
            try:
                next(iter(other.unary_stream(methods.STREAM_BATCHES)(request(1), timeout=1.0)))
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                return stalled
        for call in stalled:
            call.cancel()
    pytest.fail("all streams were answered, though nobody reads them")


def test_a_stream_that_nobody_reads_is_cancelled_and_its_thread_is_free_again(
    big_node, few_threads, monkeypatch, caplog
):
    caplog.set_level(logging.WARNING, "mixserve")
    monkeypatch.setattr(streams, "_STALLED_S", 1.0)
    monkeypatch.setattr(streams, "_LOOK_EVERY_S", 0.1)
    with serve({"train": big_node}, shared_memory=False) as server:
        with grpc.insecure_channel(server.address) as channel, plain(server) as client:
            stalled = [channel.unary_stream(methods.STREAM_BATCHES)(request(ENDLESS)) for _ in range(few_threads)]
            until(lambda: server._streams.ended.count >= len(stalled))
            assert "ending its stream" in caplog.text
            for call in stalled:
                with pytest.raises(grpc.RpcError) as caught:
                    for _ in call:
                        pass
                assert caught.value.code() is grpc.StatusCode.CANCELLED
            came = list(client.batches(SIZE, 3, stop=100 * SIZE, timeout_s=DEADLINE_S))
            assert len(came) == 100
            assert [record.getMessage() for record in caplog.records if record.exc_info] == []
        assert server.stop(grace_s=10)  # no call is left


def test_a_reader_that_is_slow_but_reads_is_not_cancelled(big_node, monkeypatch):
    monkeypatch.setattr(streams, "_STALLED_S", 3.0)  # all replies together take longer
    monkeypatch.setattr(streams, "_LOOK_EVERY_S", 0.05)
    with serve({"train": big_node}, shared_memory=False) as server, plain(server) as client:
        expected = client.get_batch_at(0, 200 * SIZE, 3)["tokens"].reshape(200, SIZE, ROW)
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_stream(methods.STREAM_BATCHES)(request(200))
            for number, reply in enumerate(call):
                np.testing.assert_array_equal(decode_batch(reply)[1]["tokens"], expected[number])
                time.sleep(0.02)
            assert number == 199


def test_single_calls_and_health_are_answered_while_stalled_readers_hold_all_streams(big_node, few_threads):
    with (
        serve({"train": big_node}, shared_memory=False) as server,
        plain(server) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        stalled = stalled_readers(channel, server)
        for _ in range(5):
            assert probe(server.address, 5) == "SERVING"
            assert client.get_batch_at(0, 2, 3, timeout_s=10)["tokens"].shape == (2, ROW)
            assert client.mixture(timeout_s=10).name == "train"
        for call in stalled:
            call.cancel()
        assert len(list(client.batches(SIZE, 3, stop=10 * SIZE, timeout_s=DEADLINE_S))) == 10


def test_a_stream_ends_early_while_another_waits(big_node, monkeypatch):
    monkeypatch.setattr(streams, "THREADS", 1)
    with serve({"train": big_node}, shared_memory=False) as server, grpc.insecure_channel(server.address) as channel:
        ask = channel.unary_stream(methods.STREAM_BATCHES)
        first = ask(request(ENDLESS))
        next(first)
        other = ask(request(3, 4))
        assert sum(1 for _ in islice(first, MANY)) < MANY, "it goes on while another waits"  # ends without an error
        assert len(list(other)) == 3
        alone = ask(request(50))
        assert len(list(alone)) == 50  # no other stream waits, so it comes to its end


@pytest.mark.alone
@pytest.mark.parametrize("route", ROUTES)
def test_many_iterators_share_two_threads_evenly(big_node, few_threads, monkeypatch, tmp_path, route):
    monkeypatch.setattr(ranges_module, "_READ_AHEAD_BYTES", 2 << 20)
    iterators, clients = 40, 10
    together, stop = threading.Barrier(iterators + 1), threading.Event()
    counts, sums = [0] * iterators, [np.uint64(0)] * iterators

    def read(number: int, client: MixClient) -> None:
        with client.batches(SIZE, number) as batches:
            together.wait(DEADLINE_S)
            while not stop.is_set():
                sums[number] += np.uint64(next(batches)["tokens"].sum(dtype=np.uint64))
                counts[number] += 1

    folder = str(tmp_path)
    with serve({"train": big_node}, shared_memory=folder) as server:
        options = {"shared_memory": folder} | ROUTES[route]
        made = [plain(server, **options) for _ in range(clients)]
        threads = in_threads([lambda n=n: read(n, made[n % clients]) for n in range(iterators)])
        together.wait(DEADLINE_S)
        # Long enough that the initial prefetch, 16 batches, does not matter.
        until(lambda: sum(counts) >= 80 * iterators)
        at_once = list(counts)
        stop.set()
        joined(threads)
        for client in made:
            client.close()
        with plain(server) as client:
            for number in range(0, iterators, 5):
                rows = client.get_batch_at(0, counts[number] * SIZE, number)["tokens"]
                assert rows.sum(dtype=np.uint64) == sums[number]
    assert min(at_once) / np.mean(at_once) >= 0.5, at_once


def test_a_server_that_drains_hands_its_readers_on(big_node):
    with serve({"train": big_node}, shared_memory=False) as first, serve({"train": big_node}) as second:
        with plain(second) as client:
            expected = client.get_batch_at(0, 1000 * SIZE, 3)["tokens"].reshape(1000, SIZE, ROW)
        with MixClient.connect([first.address, second.address], shared_memory=False, patience_s=DEADLINE_S) as client:
            batches, stopping, finished = client.batches(SIZE, 3), list[threading.Thread](), list[bool]()
            for number in range(1000):
                if number == 100:
                    stopping = in_threads([lambda: finished.append(first.stop(grace_s=DEADLINE_S))])
                np.testing.assert_array_equal(next(batches)["tokens"], expected[number])
            joined(stopping)
            assert finished == [True]
            assert client.transport.endswith(f"grpc {second.address}")


def test_a_drain_waits_for_no_stream_to_come_to_its_end(big_node):
    """An endless stream that is read all the time does not delay the end of a server."""
    server = serve({"train": big_node}, shared_memory=False)
    with grpc.insecure_channel(server.address) as channel:
        call, ended = channel.unary_stream(methods.STREAM_BATCHES)(request(ENDLESS)), list[int]()
        next(call)
        reading = in_threads([lambda: ended.append(sum(1 for _ in call))])
        started = time.monotonic()
        assert server.stop(grace_s=DEADLINE_S)
        assert time.monotonic() - started < DEADLINE_S / 2
        joined(reading)
        assert len(ended) == 1  # without an error


def test_a_server_that_is_killed_in_mid_stream_comes_back_and_the_stream_goes_on(tmp_path):
    size, count = 64, 96  # 96 MiB in one stream, taken batch by batch
    with memory_server(tmp_path) as first:
        address = serving_on(first)
        client = plain(address)
        mixture = client.mixture()
        view = Selection(mixture, key_words(3), Schedule(mixture))
        stream = BatchStream(
            client._caller, view, client.catalog.resources.here.sender, StridedRange(5, size, size, count), MemoryPool()
        )
        batches = (batch for some in stream for batch in some)
        came = [next(batches)["tokens"].copy() for _ in range(2)]
        first.kill()
        with memory_server(tmp_path, address):
            came += [batch["tokens"].copy() for batch in batches]
            assert len(came) == count
            with plain(address) as other:
                for number in (0, 1, 2, 3, count // 2, count - 1):
                    whole = other.get_batch_at(5 + number * size, size, 3)
                    assert_batches_equal({"tokens": came[number]}, whole)
        client.close()


def test_nobody_waits_while_a_thread_is_free():
    """Otherwise a stream would end early for another one that is about to begin."""
    threads, go = CountingThreads(2, "test"), threading.Event()
    try:
        seen = list[int]()
        for _ in range(4):
            threads.submit(go.wait, DEADLINE_S)
            seen.append(threads.waiting)
        assert seen == [0, 0, 1, 2]
        go.set()
        until(lambda: threads._in_flight == 0)
        assert threads.waiting == 0
    finally:
        go.set()
        threads.shutdown()


def test_bulk_channels_close_while_their_watcher_wakes_by_itself(big_node):
    """The end of a connection wakes the thread that watches it, which may end before it is told to."""
    for _ in range(30):
        with serve({"train": big_node}, shared_memory=False) as server:
            clients = [MixClient.connect(server.address, shared_memory=False) for _ in range(4)]
            for client in clients:
                list(client.batches(SIZE, 3, stop=2 * SIZE))
            server.stop(grace_s=0)
            for client in clients:
                client.close()
