"""Bulk channels that grow old, and requests that come in part: a channel ends for itself, and memory is bounded."""

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from mixserve import MixServer, ServerLimits, serve
from mixserve.serving.bulk import BulkChannels
from mixserve.serving.waiting_requests import WaitingRequests
from mixserve_client import MixClient
from mixserve_client.wire.bulk import Kind
from mixserve_client.wire.request import SMALL_REQUEST_BYTES
from tests.bulk.peers import SIZE, channel, ends, frame, header, request, until

AGE_S = 0.5


@pytest.fixture
def server(big_node) -> Iterator[MixServer]:
    """Its connections, and so its channels, grow old soon; requests that rest are ended soon, too."""
    limits = ServerLimits(max_connection_age_s=AGE_S, request_timeout_s=1.0)
    with serve({"train": big_node}, shared_memory=False, limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def expected(big_node) -> np.ndarray:
    with (
        serve({"train": big_node}, shared_memory=False) as running,
        MixClient.connect(running.address, shared_memory=False, bulk=False) as client,
    ):
        return client.get_batch_at(0, 64 * SIZE, 3)["tokens"].reshape(64, SIZE, -1)


def bulk_of(server: MixServer) -> BulkChannels:
    assert server._bulk is not None
    return server._bulk


def test_an_idle_channel_ends_when_it_is_old(server):
    with channel(server) as made:
        made.sendall(request(1))
        while frame(made)[0].kind != Kind.END:
            pass
        began = time.monotonic()
        assert ends(made)
        assert time.monotonic() - began < 5
    until(lambda: not len(bulk_of(server)._threads))


def test_a_stream_is_finished_before_its_channel_ends(server):
    count = 200
    with channel(server) as made:
        made.sendall(request(1, count))
        found = [frame(made)[0].kind]
        time.sleep(2 * AGE_S)  # so that it is old
        while found[-1] == Kind.REPLY:
            found.append(frame(made)[0].kind)
        assert found == [Kind.REPLY] * count + [Kind.END]
        assert ends(made)


def test_a_channel_whose_client_always_asks_ahead_ends_between_two_streams(server, monkeypatch):
    monkeypatch.setattr(bulk_of(server), "_grace_s", AGE_S)
    with channel(server) as made:
        number, began, came = 8, time.monotonic(), list[Kind]()
        made.sendall(b"".join(map(request, range(1, number + 1))))
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 20:
                came.append(frame(made)[0].kind)
                if came[-1] == Kind.END:
                    number += 1
                    made.sendall(request(number))
        assert 0.9 * AGE_S <= time.monotonic() - began < 10
        assert came[-1] == Kind.END  # not within a stream


def test_clients_go_on_over_another_channel_and_lose_nothing(server, expected, caplog):
    channels = bulk_of(server)
    with MixClient.connect(server.address, shared_memory=False, patience_s=20) as client:
        came = list[np.ndarray]()
        with client.batches(SIZE, 3, stop=64 * SIZE) as batches:
            for batch in batches:
                came.append(batch["tokens"].copy())
                time.sleep(0.05)
        np.testing.assert_array_equal(came, expected)
        assert client.transport.startswith("bulk")
    assert next(channels._numbers) > 3  # channels were opened before
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_request_that_comes_in_part_and_then_no_more_ends_its_channel(big_node):
    limits = ServerLimits(request_timeout_s=1.0)
    with serve({"train": big_node}, shared_memory=False, limits=limits) as server, channel(server) as made:
        late = bulk_of(server)._threads.late
        for byte in request(1)[:5]:
            made.sendall(bytes([byte]))
            time.sleep(0.4)  # a slow network is none of that
        assert not late.count
        assert ends(made)
        assert late.count == 1
        with channel(server) as other:
            other.sendall(request(1))
            assert frame(other)[0].kind == Kind.REPLY


def test_requests_in_part_on_many_channels_take_little_memory_together(big_node, monkeypatch, caplog):
    most, size = 4 << 20, 1 << 20
    with serve({"train": big_node}, shared_memory=False) as server, ExitStack() as opened:
        counted = WaitingRequests(most)
        monkeypatch.setattr(bulk_of(server), "requests", counted)
        honest = opened.enter_context(channel(server))
        half = header(Kind.REQUEST, 1, SMALL_REQUEST_BYTES) + bytes(size)
        made = list[socket.socket]()
        for _ in range(12):
            made.append(opened.enter_context(channel(server)))
            made[-1].sendall(half)
        until(lambda: counted.ended.count >= 8)
        assert counted.bytes <= most
        honest.sendall(request(1))
        assert frame(honest)[0].kind == Kind.REPLY
    assert "bytes of requests wait on bulk channels: ended that of ipv4:127.0.0.1" in caplog.text
    assert counted.bytes == 0
