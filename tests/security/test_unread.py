"""A client that asks for batches and reads none of them cannot fill the memory of the server."""

import socket
import struct
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve.serving import streams, unread
from mixserve.serving.unread import UnreadReplies
from mixserve_client import MixClient, Overloaded
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from tests.processes import DEADLINE_S, ONE_SIZE
from tests.tokens.calling import KEY

ROW = 1 << 20
LIMIT = 4 * ROW
THREADS = 16  # each may be making a reply when the limit is reached
CALLS = 60
STREAMS = 12  # as many as there are threads
HEADERS, RESET, SETTINGS = 1, 3, 4
END_STREAM, END_HEADERS = 1, 4


class Hoarder:
    """A connection in HTTP/2, by hand, that never gives the server room to send a message."""

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), DEADLINE_S)
        no_window = struct.pack(">HI", 4, 0)
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, no_window))
        self.calls = 0

    def ask(self, start: int) -> None:
        """Call GetBatchAt."""
        self.call(methods.GET_BATCH_AT, first_row(start).SerializeToString())

    def stream(self) -> None:
        """Call StreamBatches."""
        wanted = mix_pb2.StreamBatchesRequest(first=first_row(0), stride=1, count=4, reply_rows=1)
        self.call(methods.STREAM_BATCHES, wanted.SerializeToString())

    def call(self, method: str, request: bytes) -> None:
        stream = 1 + 2 * self.calls
        self.calls += 1
        headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "server"}
        headers |= {"te": "trailers", "content-type": "application/grpc"}
        block = b"".join(b"\0" + text(name) + text(value) for name, value in headers.items())
        message = b"\0" + struct.pack(">I", len(request)) + request
        self.socket.sendall(frame(HEADERS, END_HEADERS, stream, block) + frame(0, END_STREAM, stream, message))

    def resets(self) -> int:
        """How many of its calls the server has ended so far."""
        self.socket.settimeout(0.05)
        received = b""
        try:
            while chunk := self.socket.recv(1 << 16):
                received += chunk
        except TimeoutError:
            pass
        found = 0
        while len(received) >= 9:
            found += received[3] == RESET or (received[3] == HEADERS and bool(received[4] & END_STREAM))
            received = received[9 + int.from_bytes(received[:3]) :]
        return found


def first_row(start: int) -> mix_pb2.GetBatchAtRequest:
    return mix_pb2.GetBatchAtRequest(mixture="train", key=KEY, start=start, size=1)


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def text(of: str) -> bytes:
    return bytes([len(of)]) + of.encode()


@pytest.fixture
def server() -> Iterator[MixServer]:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    node = MixDataSourcesNode(config, [ArraySource({"x": np.zeros((8, ROW), np.uint8)})])
    with serve({"train": node}, "127.0.0.1:0", shared_memory=False) as running:
        running._unread = UnreadReplies(LIMIT)
        yield running


def hoard(server: MixServer) -> Hoarder:
    """A connection that has asked for many times the limit, and waits."""
    hoarder = Hoarder(server.address)
    for start in range(CALLS):
        hoarder.ask(start)
    wait_until(lambda: server._unread.bytes >= LIMIT)
    wait_until(lambda: not server._calls._running)
    return hoarder


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_unread_replies_are_bounded(server: MixServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "_STALLED_S", 3600.0)
    hoarder = hoard(server)
    assert LIMIT <= server._unread.bytes <= LIMIT + THREADS * 2 * ROW
    with MixClient.connect(server.address, shared_memory=False, patience_s=0.5) as client:
        with pytest.raises(Overloaded, match="readers have not taken the replies"):
            client.get_batch_at(0, 1, key=7)
        hoarder.socket.close()
        wait_until(lambda: server._unread.bytes == 0)
        assert len(client.get_batch_at(0, 1, key=7)["x"]) == 1
        wait_until(lambda: server._unread.bytes == 0)


def test_calls_that_stalled_are_ended_to_make_room(
    server: MixServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unread, "_STALLED_S", 0.1)
    hoarder = hoard(server)
    with MixClient.connect(server.address, shared_memory=False, patience_s=DEADLINE_S) as client:
        for start in range(10):
            client.get_batch_at(start, 1, key=7)
        session = client.session("kept", mixture="train")
        session.close()
    assert "takes no replies: ended calls of it, to make room for those of others" in caplog.text
    assert hoarder.resets() > 0
    hoarder.socket.close()


def test_leases_are_renewed_however_many_wait(server: MixServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "_STALLED_S", 3600.0)
    hoarder = hoard(server)
    with grpc.insecure_channel(server.address) as channel:
        for method in (methods.RENEW_SESSIONS, methods.RELEASE_SESSIONS):
            assert channel.unary_unary(method)(b"", timeout=DEADLINE_S) == b""
    hoarder.socket.close()


def test_streams_that_are_not_read_give_way_to_others(server: MixServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_STALLED_S", 3600.0)
    monkeypatch.setattr(streams, "_STALLED_BEFORE_OTHERS_S", 0.2)
    hoarder = Hoarder(server.address)
    for _ in range(STREAMS):
        hoarder.stream()
    wait_until(lambda: len(server._streams._sending) == STREAMS)
    time.sleep(1.5)  # the server looks once a second
    assert len(server._streams._sending) == STREAMS  # none is ended while no other call waits
    with MixClient.connect(server.address, shared_memory=False, patience_s=DEADLINE_S) as client:
        assert len(next(client.batches(1, key=7, timeout_s=DEADLINE_S))["x"]) == 1
    assert len(server._streams._sending) >= STREAMS - 3  # as many ended as were needed
    hoarder.socket.close()
