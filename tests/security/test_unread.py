"""A client that asks for batches and reads none of them cannot fill the memory of the server."""

import gc
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve.limits import ServerLimits
from mixserve.serving import streams, unread
from mixserve_client import MixClient, Overloaded, Unavailable
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from tests.hanging_source import HangingSource
from tests.processes import DEADLINE_S, ONE_SIZE
from tests.tokens.calling import KEY
from tests.waiting import wait_until

ROW = 1 << 20
REPLY = ROW + 512  # a row and its frame, at most
LIMIT = 8 * REPLY
OF_ONE = 4 * REPLY
CALLS = 60
STREAMS = 12  # as many as there are threads
ONE_SOURCE = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
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
        self._ended = set[bytes]()
        self._received = b""

    def ask(self, start: int) -> None:
        """Call GetBatchAt."""
        self.call(methods.GET_BATCH_AT, first_row(start).SerializeToString())

    def stream(self) -> None:
        """Call StreamBatches."""
        wanted = mix_pb2.StreamBatchesRequest(first=first_row(0), stride=1, count=4, reply_rows=1)
        self.call(methods.STREAM_BATCHES, wanted.SerializeToString())

    def call(self, method: str, request: bytes | None) -> None:
        stream = 1 + 2 * self.calls
        self.calls += 1
        headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "server"}
        headers |= {"te": "trailers", "content-type": "application/grpc"}
        block = b"".join(b"\0" + text(name) + text(value) for name, value in headers.items())
        content = frame(HEADERS, END_HEADERS, stream, block)
        if request is not None:
            message = b"\0" + struct.pack(">I", len(request)) + request
            content += frame(0, END_STREAM, stream, message)
        self.socket.sendall(content)

    def resets(self) -> int:
        """How many of its calls the server has ended so far."""
        self.socket.settimeout(0.05)
        received = self._received
        try:
            while chunk := self.socket.recv(1 << 16):
                received += chunk
        except TimeoutError:
            pass
        while len(received) >= 9 and len(received) >= 9 + int.from_bytes(received[:3]):
            if received[3] == RESET or (received[3] == HEADERS and received[4] & END_STREAM):
                self._ended.add(received[5:9])
            received = received[9 + int.from_bytes(received[:3]) :]
        self._received = received
        return len(self._ended)


def first_row(start: int) -> mix_pb2.GetBatchAtRequest:
    return mix_pb2.GetBatchAtRequest(mixture="train", key=KEY, start=start, size=1)


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def text(of: str) -> bytes:
    return bytes([len(of)]) + of.encode()


@pytest.fixture
def server() -> Iterator[MixServer]:
    node = MixDataSourcesNode(ONE_SOURCE, [ArraySource({"x": np.zeros((8, ROW), np.uint8)})])
    limits = ServerLimits(reply_bytes=LIMIT, reply_bytes_per_connection=OF_ONE, streams_per_connection=STREAMS)
    with serve({"train": node}, "127.0.0.1:0", shared_memory=False, limits=limits) as running:
        yield running


def hoard(server: MixServer) -> Hoarder:
    """A connection that has asked for many times what it may have, and waits."""
    hoarder = Hoarder(server.address)
    refused = server._unread.refused.count
    for start in range(CALLS):
        hoarder.ask(start)
    wait_until(
        lambda: server._unread.refused.count > refused and not server._answers.calls._running,
        "a refusal, and that no call runs",
    )
    return hoarder


def test_replies_are_counted_before_they_are_made(server: MixServer) -> None:
    hoarder = hoard(server)
    assert OF_ONE - REPLY < server._unread.bytes <= OF_ONE
    assert server._unread.made_bytes <= OF_ONE + CALLS  # of those that were refused, a byte: none was built
    hoarder.socket.close()
    wait_until(lambda: server._unread.bytes == 0, "that no bytes are counted")
    assert not server._unread._connections


def test_one_connection_does_not_take_the_room_of_others(server: MixServer) -> None:
    hoarder = hoard(server)
    with MixClient.connect(server.address, shared_memory=False, patience_s=0.1) as client:
        for start in range(10):
            assert len(client.get_batch_at(start, 1, key=7)["x"]) == 1
    assert hoarder.resets() == CALLS - 4  # those that were refused, and none to make room
    hoarder.socket.close()


def test_unread_replies_are_bounded(server: MixServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "_GREEDY_STALLED_S", 3600.0)
    monkeypatch.setattr(unread, "_STALLED_S", 3600.0)
    hoarders = [hoard(server) for _ in range(9)]
    assert LIMIT - REPLY < server._unread.bytes <= LIMIT
    with MixClient.connect(server.address, shared_memory=False, patience_s=0.5) as client:
        with pytest.raises(Overloaded, match="readers have not taken the replies"):
            client.get_batch_at(0, 1, key=7)
        for hoarder in hoarders:
            hoarder.socket.close()
        wait_until(lambda: server._unread.bytes == 0, "that no bytes are counted")
        assert len(client.get_batch_at(0, 1, key=7)["x"]) == 1
        wait_until(lambda: server._unread.bytes == 0, "that no bytes are counted")


def test_calls_that_stalled_are_ended_to_make_room(
    server: MixServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unread, "_GREEDY_STALLED_S", 0.1)
    monkeypatch.setattr(unread, "_STALLED_S", 0.1)
    hoarders = [hoard(server) for _ in range(9)]
    with MixClient.connect(server.address, shared_memory=False, patience_s=DEADLINE_S) as client:
        for start in range(10):
            client.get_batch_at(start, 1, key=7)
        session = client.session("kept", mixture="train")
        session.close()
    assert "takes no replies: ended calls of it, to make room for those of others" in caplog.text
    assert "reply_bytes in server.limits" in caplog.text
    for hoarder in hoarders:
        hoarder.socket.close()


def test_a_call_whose_reply_is_never_taken_ends(server: MixServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if nobody needs its room: it was pinned for good."""
    monkeypatch.setattr(unread, "_LONGEST_S", 0.5)
    hoarder = Hoarder(server.address)
    hoarder.ask(0)
    wait_until(lambda: server._unread.bytes > 0, "bytes that are counted")
    wait_until(lambda: server._unread.bytes == 0, "that no bytes are counted")
    assert hoarder.resets() == 1
    hoarder.socket.close()


def test_replies_of_streams_count_too(server: MixServer) -> None:
    hoarder = Hoarder(server.address)
    for _ in range(STREAMS):
        hoarder.stream()
    wait_until(lambda: server._unread.refused.count > 0, "a refusal")
    assert 0 < server._unread.bytes <= OF_ONE
    hoarder.socket.close()
    wait_until(lambda: server._unread.bytes == 0, "that no bytes are counted")


def test_replies_of_bulk_channels_count_until_they_are_taken(server: MixServer) -> None:
    with MixClient.connect(server.address, shared_memory=False) as client:
        stream = client.batches(1, key=7, stop=64)
        assert len(next(stream)["x"]) == 1
        assert server._unread.made_bytes >= ROW
        assert sum(1 for _ in stream) == 63
    wait_until(lambda: server._unread.bytes == 0, "that no bytes are counted")


def test_a_stream_too_many_is_refused(server: MixServer) -> None:
    hoarder = Hoarder(server.address)
    for _ in range(STREAMS + 5):
        hoarder.call(methods.STREAM_BATCHES, None)
    wait_until(lambda: server._streams._threads.refused.count == 5, "five refusals")
    wait_until(lambda: hoarder.resets() == 5, "five resets")
    assert sum(server._streams._threads._of_one.values()) == STREAMS
    hoarder.socket.close()
    wait_until(lambda: not server._streams._threads._of_one, "that no connection has a stream")


def test_leases_are_renewed_however_many_wait(server: MixServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "_GREEDY_STALLED_S", 3600.0)
    monkeypatch.setattr(unread, "_STALLED_S", 3600.0)
    hoarders = [hoard(server) for _ in range(9)]
    with grpc.insecure_channel(server.address) as channel:
        for method in (methods.RENEW_SESSIONS, methods.RELEASE_SESSIONS):
            assert channel.unary_unary(method)(b"", timeout=DEADLINE_S) == b""
    for hoarder in hoarders:
        hoarder.socket.close()


@pytest.mark.parametrize("most_blocked", [0, 64])
def test_streams_that_are_not_read_give_way_to_others(
    node: MixDataSourcesNode, monkeypatch: pytest.MonkeyPatch, most_blocked: int
) -> None:
    """They end when there may be no more threads; if there may be, none ends, and others do not wait."""
    monkeypatch.setattr(streams, "_STALLED_S", 3600.0)
    monkeypatch.setattr(streams, "_MOST_BLOCKED", most_blocked)
    with serve({"train": node}, "127.0.0.1:0", shared_memory=False) as server:
        hoarder = Hoarder(server.address)
        for _ in range(STREAMS):
            hoarder.stream()
        wait_until(lambda: len(server._streams._sending) == STREAMS, "all streams")
        time.sleep(1.5)  # the server looks once a second
        assert len(server._streams._sending) == STREAMS  # none is ended while no other call waits
        with MixClient.connect(server.address, shared_memory=False, bulk=False, patience_s=DEADLINE_S) as client:
            waits = list[float]()
            for _ in range(3 if most_blocked else 1):  # the machine may be busy for one of them
                began = time.monotonic()
                assert len(next(client.batches(1, key=7, timeout_s=DEADLINE_S))) > 0
                waits.append(time.monotonic() - began)
            if most_blocked:
                assert len(server._streams._sending) >= STREAMS
                assert min(waits) < 1.0
        assert len(server._streams._sending) >= STREAMS - 3  # as many ended as were needed
        hoarder.socket.close()


def test_a_call_that_is_given_up_while_it_is_answered_counts_nothing(tmp_path: Path) -> None:
    """Its reply was counted when it was made, after the call's end, and for good."""
    hang = tmp_path / "hang"
    with (
        serve(
            {"train": MixDataSourcesNode(ONE_SOURCE, [HangingSource(hang)])}, "127.0.0.1:0", shared_memory=False
        ) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        hang.touch()
        call = channel.unary_unary(methods.GET_BATCH_AT).future(first_row(1).SerializeToString())
        wait_until(lambda: server._unread.bytes > 0, "bytes that are counted")
        call.cancel()
        wait_until(lambda: server._unread.bytes == 0, "that no bytes are counted")
        assert server._answers.calls._running == 1
        hang.unlink()
        wait_until(lambda: not server._answers.calls._running, "that no call runs")
        assert not server._unread.bytes
        assert not server._unread._connections


def test_a_call_that_is_given_up_while_it_finds_room_counts_nothing(node: MixDataSourcesNode) -> None:
    """A byte was counted for its connection, for good: nothing was told of the end of a call that had ended before."""
    looked, over = list[int](), threading.Event()

    def look() -> None:
        """The server looks at its memory; the caller has given up, and gRPC knows it, before it goes on."""
        if not looked:
            looked.append(server._answers.calls._running)
            call.cancel()
            assert over.wait(DEADLINE_S)

    with (
        serve({"train": node}, "127.0.0.1:0", shared_memory=False) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        server._unread.look, server._unread.look_at = look, 0
        call = channel.unary_unary(methods.LIST_MIXTURES).future(b"")
        wait_until(lambda: looked == [1], "a look for room")
        wait_until(
            lambda: not any(state.callbacks is not None for state in server._server._state.rpc_states), "the call's end"
        )
        over.set()
        wait_until(lambda: not server._answers.calls._running, "that no call runs")
        assert not server._unread.bytes
        assert not server._unread._connections


class Stalled(float):
    """A time long ago; when the thread that makes room has compared it, the reader takes its reply."""

    reader: threading.Thread

    def __gt__(self, other: float) -> bool:
        self.reader.start()
        wait_until(lambda: _function_of(self.reader).startswith("UnreadReplies."), "a reader that waits for the lock")
        return False


def _function_of(thread: threading.Thread) -> str:
    # A collector that runs inside hangs, with all threads, in some versions of Python (3.11.7): when it finds a
    # `threading.local`, it waits for a lock of the interpreter, which this call holds.
    gc.disable()
    try:
        frame = sys._current_frames().get(thread.ident or 0)
    finally:
        gc.enable()
    return "" if frame is None else frame.f_code.co_qualname


def test_a_reply_that_is_taken_while_its_room_is_given_to_others_counts_once() -> None:
    """Its call counted less than nothing, and at its end stayed among those of its connection, for good."""
    replies = unread.UnreadReplies(1000)
    account, other = replies.open("slow", lambda: None), replies.open("other", lambda: None)
    account.reserve(700)
    account.since = since = Stalled(-1e9)
    since.reader = threading.Thread(target=account.sent, args=(700,))
    other.reserve(700)
    since.reader.join(DEADLINE_S)
    assert (account.bytes, other.bytes, replies.bytes) == (0, 700, 700)
    account.close()
    assert list(replies._connections) == ["other"]


def test_nothing_counts_after_the_end_of_a_call() -> None:
    replies = unread.UnreadReplies(1000)
    account = replies.open("peer", lambda: None)
    account.reserve(100)
    account.close()
    account.settle(200)
    with pytest.raises(Unavailable, match="the caller has ended this call"):
        account.reserve(100)
    account.sent(50)
    account.close()
    assert (replies.bytes, account.bytes) == (0, 0)
    assert not replies._connections
