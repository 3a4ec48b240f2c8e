"""Waits for batches over bulk channels: deadlines and `close` end them, and what is lost is fetched again."""

import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import jax
import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve.serving import bulk_threads
from mixserve_client import DeadlineExceeded, InvalidRequest, MixClient, MixserveError, Unavailable
from mixserve_client.reading import read_ahead
from mixserve_client.schema.server import BulkOffer
from mixserve_client.transport import bulk_connection
from mixserve_client.wire import methods
from mixserve_client.wire.bulk import Kind, decode_bulk_request
from tests.bulk.peers import (
    DEADLINE_S,
    SIZE,
    TOKEN,
    HostileBulk,
    drain,
    frame,
    header,
    hostile_bulk,
    let_in,
    offer_of,
    until,
)
from tests.client.test_shared_memory import serving_on
from tests.conftest import ROUTES
from tests.memory_server import memory_server
from tests.processes import ONE_SIZE

ROW = 4096
TIMEOUT_S = 1.0
AT_ONCE_S = 3.0  # on a busy machine; what is not ended waits for 5 s, after which the server is asked, or for ever


@pytest.fixture(scope="module")
def server(big_node) -> Iterator[MixServer]:
    with serve({"train": big_node}, shared_memory=False) as running:
        yield running


def connect(address: str, **options: float) -> MixClient:
    return MixClient.connect(address, **{"shared_memory": False, "patience_s": DEADLINE_S} | options)


@pytest.fixture(scope="module")
def expected(server) -> np.ndarray:
    with connect(server.address, bulk=False) as client:
        return client.get_batch_at(0, 600 * SIZE, 3)["tokens"].reshape(600, SIZE, ROW)


class Answers:
    """Answers requests as a server does, until it is told to be silent before or after the rows of a stream."""

    def __init__(self) -> None:
        self.made: HostileBulk | None = None
        self.silent_before_rows = self.silent_before_ends = False
        self.ends_left = 1 << 40  # before it is silent
        self.replies_left = 1 << 40  # before it ends a connection, and sends no ends any more

    def __call__(self, connection: socket.socket) -> None:
        let_in(connection)
        while True:
            found, payload = frame(connection)
            if found.kind != Kind.REQUEST:
                continue
            assert self.made is not None
            method, request = decode_bulk_request(payload)
            if self.silent_before_rows:
                drain(connection)
                return
            for reply in self.made.services.stream(method, request):
                self.replies_left -= 1
                if self.replies_left == 0:
                    self.silent_before_ends = True
                    return
                connection.sendall(header(Kind.REPLY, found.stream, len(reply)) + reply)
            self.ends_left -= 1
            if self.silent_before_ends or self.ends_left < 0:
                drain(connection)
                return
            connection.sendall(header(Kind.END, found.stream))


@pytest.fixture
def answers(big_node) -> Iterator[tuple[str, HostileBulk, Answers]]:
    behave = Answers()
    with hostile_bulk(big_node, behave) as (address, made):
        behave.made = made
        yield address, made, behave


def in_use(client: MixClient) -> None:
    """Open a channel, so that iterators read by themselves from their first batch on."""
    client.get_batch_at(0, 64, 3)
    assert client.transport.startswith("bulk")


def how_long(call: Callable[[], object], error: type[Exception]) -> float:
    begun = time.monotonic()
    with pytest.raises(error):
        call()
    return time.monotonic() - begun


CLOSING = ["iterator", "client", "deadline"]


def assert_ends(client: MixClient, batches, by: str, after: threading.Event | None = None) -> None:
    """The next batch does not come; the wait for it ends at once, by a call of another thread (which comes after that
    event) or at its deadline.
    """
    if by == "deadline":
        assert TIMEOUT_S - 0.2 < how_long(lambda: next(batches), DeadlineExceeded) < TIMEOUT_S + AT_ONCE_S
        return
    closed_at = list[float]()

    def close() -> None:
        if after is not None:
            after.wait(DEADLINE_S)
        closed_at.append(time.monotonic())
        (client if by == "client" else batches).close()

    timer = threading.Timer(0.3, close)
    timer.start()
    with pytest.raises(Unavailable):
        next(batches)
    assert time.monotonic() - closed_at[0] < AT_ONCE_S
    timer.join()


@pytest.mark.parametrize("by", CLOSING)
@pytest.mark.parametrize("away_s", [0.0, 0.2])
def test_a_wait_for_rows_ends(answers, by, away_s):
    address, _, behave = answers
    with connect(address) as client:
        in_use(client)
        behave.silent_before_rows = True
        batches = client.batches(SIZE, 3, timeout_s=TIMEOUT_S if by == "deadline" else None)
        batches.start_prefetch()
        time.sleep(away_s)
        assert_ends(client, batches, by)
        batches.close()


@pytest.mark.parametrize("by", CLOSING)
@pytest.mark.parametrize("away_s", [0.0, 0.2])
def test_a_wait_for_the_end_of_the_stream_before_ends(answers, by, away_s):
    """Also if another thread reads ahead, and waits for it as well."""
    address, _, behave = answers
    with connect(address) as client:
        in_use(client)
        behave.silent_before_ends = True
        batches = client.batches(SIZE, 3, timeout_s=TIMEOUT_S if by == "deadline" else None)
        next(batches)  # the first stream has one batch
        time.sleep(away_s)
        assert_ends(client, batches, by)
        batches.close()


@pytest.mark.parametrize("by", CLOSING)
def test_a_wait_for_the_end_that_another_thread_reads_ends(answers, by):
    """That thread has read all batches of a stream; the trainer has taken them, and comes to the stream after it."""
    address, _, behave = answers
    with connect(address) as client:
        in_use(client)
        behave.ends_left = 1
        batches = client.batches(SIZE, 3, timeout_s=TIMEOUT_S if by == "deadline" else None)
        next(batches)
        time.sleep(0.01)
        next(batches)
        left = until(partial(all_are_ready, batches))
        for _ in range(left):
            next(batches)
        assert_ends(client, batches, by)
        batches.close()


@pytest.mark.parametrize("by", CLOSING)
def test_a_wait_for_the_end_of_a_stream_on_another_channel_ends(answers, by, monkeypatch):
    """Its own was lost in the middle."""
    monkeypatch.setattr(read_ahead, "_AWAY_S", 1e9)
    address, made, behave = answers
    with connect(address) as client:
        in_use(client)
        behave.replies_left = 3
        batches = client.batches(SIZE, 3, timeout_s=TIMEOUT_S if by == "deadline" else None)
        next(batches)
        before = len(made.connections)
        while len(made.connections) == before:
            next(batches)
        for _ in range(batches.batches._in_flight._fetching[0].left):
            next(batches)
        assert_ends(client, batches, by)
        batches.close()


@pytest.mark.parametrize("by", CLOSING)
def test_a_wait_ends_while_a_silent_server_is_asked_whether_it_is_there(answers, by, monkeypatch):
    monkeypatch.setattr(bulk_connection, "_SILENT_S", 0.1)
    address, made, behave = answers
    over, asked = threading.Event(), threading.Event()
    whole = made.answer

    def answer(method: str, request: bytes) -> Iterator[bytes]:
        if method == methods.LIST_MIXTURES and behave.silent_before_rows:
            asked.set()
            over.wait(DEADLINE_S)
        return whole(method, request)

    try:
        with connect(address) as client:
            made.hook = answer
            in_use(client)
            behave.silent_before_rows = True
            batches = client.batches(SIZE, 3, timeout_s=TIMEOUT_S if by == "deadline" else None)
            assert_ends(client, batches, by, asked)
            assert asked.is_set()
            batches.close()
    finally:
        over.set()


def test_a_server_that_answers_calls_is_waited_for(answers, monkeypatch):
    monkeypatch.setattr(bulk_connection, "_SILENT_S", 0.05)
    monkeypatch.setattr(bulk_connection, "_ASK_S", 0.2)
    address, _, behave = answers
    with connect(address) as client:
        in_use(client)
        behave.silent_before_rows = True
        batches = client.batches(SIZE, 3, timeout_s=1)
        assert 0.9 < how_long(lambda: next(batches), DeadlineExceeded) < 1.0 + AT_ONCE_S
        batches.close()


def test_a_silent_replica_is_left_before_the_deadline(answers, big_node):
    address, _, behave = answers
    with (
        serve({"train": big_node}, shared_memory=False) as other,
        MixClient.connect(address, shared_memory=False) as alone,
        MixClient.connect([address, other.address], shared_memory=False) as client,
    ):
        in_use(alone)
        in_use(client)
        behave.silent_before_rows = True
        batches = alone.batches(SIZE, 3, timeout_s=0.3)
        with pytest.raises(DeadlineExceeded, match="before the batch arrived"):
            next(batches)
        batches.close()
        for _ in range(4):
            next(client.batches(SIZE, 3, timeout_s=2))
        assert client.transport.endswith(other.address)


# A channel is lost, and there is no other


class Slow:
    """The streams of a server over gRPC: each reply takes `delay_s`, until `over`."""

    def __init__(self, made: HostileBulk, delay_s: float):
        self.over = threading.Event()
        self._made, self._delay_s, self._answer = made, delay_s, made.answer
        made.hook = self

    def __call__(self, method: str, request: bytes) -> Iterator[bytes]:
        replies = self._answer(method, request)
        return replies if method != methods.STREAM_BATCHES else self._slowly(replies)

    def _slowly(self, replies: Iterator[bytes]) -> Iterator[bytes]:
        for reply in replies:
            self.over.wait(self._delay_s)
            yield reply


def end_channels(made: HostileBulk) -> None:
    """No bulk channel works any more, and none opens."""
    made.offer = BulkOffer("", 1, TOKEN)
    for connection in made.connections:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("by", CLOSING)
@pytest.mark.parametrize("all_is_read", [False, True])
def test_a_wait_over_grpc_ends_too_where_a_channel_was(answers, by, all_is_read, monkeypatch):
    address, made, _ = answers
    with connect(address) as client:
        in_use(client)
        batches = client.batches(SIZE, 3, timeout_s=TIMEOUT_S if by == "deadline" else None)
        next(batches)
        if all_is_read:  # by another thread, so that the next request finds out
            time.sleep(0.01)
            next(batches)
            until(partial(is_read, batches))
            monkeypatch.setattr(read_ahead, "_AWAY_S", 1e9)
        slow = Slow(made, DEADLINE_S)
        end_channels(made)
        ended_at = list[float]()

        def close() -> None:
            ended_at.append(time.monotonic())
            (client if by == "client" else batches).close()

        timer = threading.Timer(1.0, close)
        if by != "deadline":
            timer.start()
        with pytest.raises(DeadlineExceeded if by == "deadline" else Unavailable):
            for _ in range(1000):  # some have come already
                begun = time.monotonic()
                next(batches)
        assert time.monotonic() - (ended_at[0] if ended_at else begun) < TIMEOUT_S + AT_ONCE_S
        slow.over.set()
        batches.close()


def all_are_ready(batches) -> int:
    """How many batches of the first stream are left if all of these have been read, otherwise 0."""
    first = batches.batches._in_flight._fetching[0]
    return first.left if len(first.streams[0]._ready) == first.left else 0


def is_read(batches) -> bool:
    in_flight = batches.batches._in_flight._fetching
    return all(stream.has_ended for fetching in in_flight for stream in fetching.streams)


def test_a_stream_over_grpc_in_place_of_a_channel_has_the_deadlines_of_its_readers(answers, expected, monkeypatch):
    """A trainer that is away for longer than `timeout_s` does not find the deadline of its last wait."""
    address, made, _ = answers
    with connect(address) as client:
        in_use(client)
        with client.batches(SIZE, 3, timeout_s=1.2) as batches:
            monkeypatch.setattr(read_ahead, "_AWAY_S", 1e9)  # at first the trainer itself asks over gRPC
            came = [next(batches)["tokens"].copy()]
            slow = Slow(made, 0.05)
            end_channels(made)
            while not made.streams:
                came.append(next(batches)["tokens"].copy())
            monkeypatch.undo()
            for pause_s in (0.01, 0.01, 1.6, 0, 1.6, 0, 0):
                time.sleep(pause_s)
                came.append(next(batches)["tokens"].copy())
            slow.over.set()
            came += [next(batches)["tokens"].copy() for _ in range(100)]
    np.testing.assert_array_equal(came, expected[: len(came)])
    assert made.streams


def test_a_channel_that_ends_before_every_reply_is_left_for_grpc(big_node, expected):
    def behave(connection: socket.socket) -> None:
        let_in(connection)
        frame(connection)

    with hostile_bulk(big_node, behave) as (address, made), connect(address) as client:
        begun = time.monotonic()
        with client.batches(SIZE, 3) as batches:
            came = [next(batches)["tokens"].copy() for _ in range(100)]
        assert time.monotonic() - begun < 2
        np.testing.assert_array_equal(came, expected[:100])
        assert made.streams


def test_the_port_of_another_server_is_left_for_grpc(big_node, server, expected):
    with hostile_bulk(big_node, drain) as (address, made), connect(address, patience_s=3) as client:
        made.offer = BulkOffer("", offer_of(server).port, TOKEN)
        begun = time.monotonic()
        with client.batches(SIZE, 3) as batches:
            came = [next(batches)["tokens"].copy() for _ in range(100)]
        assert time.monotonic() - begun < 1.5
        np.testing.assert_array_equal(came, expected[:100])
        assert client.transport == f"grpc {address}"


# Trainers that pause, fork or are closed; servers that are killed


def test_a_trainer_that_pauses_for_longer_than_servers_wait_loses_nothing(server, expected, monkeypatch):
    assert server._bulk is not None
    threads = server._bulk._threads
    monkeypatch.setattr(threads, "_stalled_s", 0.3)
    monkeypatch.setattr(bulk_threads, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(read_ahead, "_AWAY_S", 1e9)  # nothing is read meanwhile
    with connect(server.address) as client:
        in_use(client)
        with client.batches(SIZE, 3) as batches:
            came = [next(batches)["tokens"].copy() for _ in range(10)]
            for _ in range(2):
                until(lambda before=threads.stalled.count: threads.stalled.count > before, 10)
                came += [next(batches)["tokens"].copy() for _ in range(250)]
    np.testing.assert_array_equal(came, expected[: len(came)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_closed_channel_ends_although_a_forked_process_has_its_descriptor(big_node):
    with serve({"train": big_node}, shared_memory=False) as server:
        client = connect(server.address)
        in_use(client)
        assert server._bulk is not None
        assert len(server._bulk._threads)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # to the parent's end
            os._exit(0)
        os.close(reading)
        try:
            client.close()
            until(lambda: not len(server._bulk._threads), 3)
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        finally:
            os.close(writing)
            os.waitpid(child, 0)


def test_a_server_that_is_killed_in_the_middle_of_frames_comes_back_and_the_iterator_goes_on(tmp_path, expected):
    came = list[np.ndarray]()
    with memory_server(tmp_path) as first:
        address = serving_on(first)
        client = connect(address)
        in_use(client)
        batches = client.batches(SIZE, 3)
        came += [next(batches)["tokens"].copy() for _ in range(20)]
        first.kill()
    with memory_server(tmp_path, address) as second:
        came += [next(batches)["tokens"].copy() for _ in range(300)]
        until(lambda: next(batches) and client.transport.startswith("bulk"))
        second.kill()
        batches.close()
        client.close()
    np.testing.assert_array_equal(came, expected[: len(came)])


# Memory


class Failing:
    """Rows of 16 KiB, until `left` of them have been read."""

    content_id = "failing"

    def __init__(self) -> None:
        self.left = 1 << 40

    def __len__(self) -> int:
        return 1000

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"x": jax.ShapeDtypeStruct((ROW,), np.int32)}

    def take(self, record_ids: np.ndarray) -> dict[str, np.ndarray]:
        self.left -= len(record_ids)
        if self.left < 0:
            raise InvalidRequest("it fails " + "and " * 3000 + "fails")
        return {"x": np.repeat(record_ids.astype(np.int32)[:, None], ROW, 1)}


@pytest.fixture
def failing(tmp_path) -> Iterator[tuple[Failing, Callable[[str], MixClient]]]:
    source = Failing()
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    with serve({"train": MixDataSourcesNode(config, [source])}, shared_memory=str(tmp_path)) as server:
        folder = {"shared_memory": str(tmp_path)}
        yield source, lambda route: connect(server.address, **ROUTES[route] | (folder if route[0] == "s" else {}))


@pytest.mark.parametrize("route", ["bulk", "shared memory"])
def test_batches_go_with_an_iterator_that_another_thread_has_read_to_an_error(failing, route):
    """Without the cycle collector: the error's traceback must not keep them."""
    source, connected = failing
    with connected(route) as client:
        client.get_batch_at(0, 64, 3)
        gc.collect()
        gc.disable()
        try:
            source.left = 40 * SIZE
            batches = client.batches(SIZE, 3)
            kept = [weakref.ref(next(batches)["x"].base)]
            if route == "bulk":
                until(partial(has_error, batches))
                kept += [weakref.ref(stream) for stream in batches.batches._in_flight._fetching[-1].streams]
            kept.append(weakref.ref(next(batches)["x"].base))
            batches.close()
            del batches
            until(lambda: all(one() is None for one in kept), 2)
        finally:
            gc.enable()


def has_error(batches) -> bool:
    in_flight = batches.batches._in_flight._fetching
    return any(stream._error for fetching in in_flight for stream in fetching.streams)


def test_errors_have_the_same_class_and_text_on_every_way(failing):
    source, connected = failing
    source.left, said = 0, list[tuple[type, str]]()
    for route in ROUTES:
        with connected(route) as client:
            for _ in range(2):
                with pytest.raises(MixserveError) as caught:
                    client.get_batch_at(0, 64, 3)
                said.append((type(caught.value), str(caught.value)))
    assert len(set(said)) == 1


def root_of(array: np.ndarray) -> np.ndarray:
    """The array over the mapping that all views of it keep."""
    root = array
    while isinstance(array, np.ndarray | memoryview):
        root = array if isinstance(array, np.ndarray) else root
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return root


@pytest.mark.parametrize("route", ["bulk", "shared memory"])
def test_a_batch_that_is_dropped_leaves_its_memory_to_the_next_one(failing, route):
    _, connected = failing
    with connected(route) as client:
        client.get_batch_at(0, 64, 3)
        gc.collect()
        gc.disable()
        try:
            with client.batches(64, 3, prefetch=1) as batches:  # each in a reply of its own
                for _ in range(4):
                    batch = next(batches)
                    kept = weakref.ref(root_of(batch["x"]))
                    del batch
                    until(lambda kept=kept: kept() is None, 2)
        finally:
            gc.enable()
