"""Clients of bulk channels that say anything, or nothing: they harm themselves alone, and the server goes on."""

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress

import numpy as np
import pytest

from mixserve import MixServer, serve
from mixserve.serving import bulk, bulk_connection, bulk_threads
from mixserve.serving.bulk_connection import BulkConnection
from mixserve.serving.bulk_door import BulkDoor
from mixserve.serving.guard import Guard
from mixserve_client import MixClient
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.transport.pipes import PlainPipe
from mixserve_client.wire import methods
from mixserve_client.wire.batch import decode_batch
from mixserve_client.wire.bulk import HELLO, WELCOME, Kind, decode_bulk_error, encode_bulk_request
from mixserve_client.wire.request import SMALL_REQUEST_BYTES, encode_stream_request
from tests.bulk.peers import SIZE, channel, ends, exactly, frame, header, offer_of, request, tcp, until

ROW = 4096


@pytest.fixture(scope="module")
def server(big_node) -> Iterator[MixServer]:
    with serve({"train": big_node}, shared_memory=False) as running:
        yield running


@pytest.fixture(scope="module")
def expected(server) -> np.ndarray:
    with MixClient.connect(server.address, shared_memory=False, bulk=False) as client:
        return client.get_batch_at(0, 64 * SIZE, 3)["tokens"].reshape(64, SIZE, ROW)


def serves(server: MixServer, expected: np.ndarray) -> None:
    """An honest client gets its batches over a bulk channel, soon."""
    with MixClient.connect(server.address, shared_memory=False, patience_s=5) as client:
        with client.batches(SIZE, 3, stop=4 * SIZE, timeout_s=10) as batches:
            np.testing.assert_array_equal([batch["tokens"] for batch in batches], expected[:4])
        assert client.transport.startswith("bulk")


def threads_of(server: MixServer) -> bulk_threads.BulkThreads:
    assert server._bulk is not None
    return server._bulk._threads


# What strangers say


NOT_HELLO: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "http": lambda _: b"GET / HTTP/1.1\r\n\r\n",
    "grpc": lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
    "tls": lambda _: bytes.fromhex("1603010200010001fc0303") + bytes(200),
    "zeros": lambda _: bytes(1 << 16),
    "half a hello": lambda _: HELLO[:7],
    "a hello without a token": lambda _: HELLO,
    "a short token": lambda token: HELLO + token[:31],
    "a token of zeros": lambda _: HELLO + bytes(32),
    "a token that is wrong in its last byte": lambda token: HELLO + token[:31] + bytes([token[31] ^ 1]),
}


@pytest.mark.parametrize("name", NOT_HELLO)
def test_who_does_not_say_hello_with_a_token_is_let_out_without_a_word(server, expected, name):
    offer = offer_of(server)
    with closing(tcp(offer.port)) as made:
        made.sendall(NOT_HELLO[name](offer.token))
        with suppress(OSError):
            made.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            assert made.recv(100) == b""
    serves(server, expected)


def test_a_token_opens_one_channel(server):
    offer = offer_of(server)
    with closing(tcp(offer.port)) as first, closing(tcp(offer.port)) as second:
        first.sendall(HELLO + offer.token)
        assert exactly(first, len(WELCOME)) == WELCOME
        second.sendall(HELLO + offer.token)
        with suppress(ConnectionError):
            assert second.recv(100) == b""


def test_a_hello_may_come_byte_by_byte_and_with_the_first_request(server, expected):
    offer = offer_of(server)
    with closing(tcp(offer.port)) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in (HELLO + offer.token)[:-1]:
            made.sendall(bytes([byte]))
        made.sendall(offer.token[-1:] + request(1))
        assert exactly(made, len(WELCOME)) == WELCOME
        found, payload = frame(made)
        assert found.kind == Kind.REPLY
        np.testing.assert_array_equal(decode_batch(payload)[1]["tokens"], expected[0])


def test_hundreds_of_strangers_who_say_nothing_keep_nobody_out(server, expected):
    with ExitStack() as opened:
        port = offer_of(server).port
        strangers = [opened.enter_context(closing(tcp(port))) for _ in range(300)]
        serves(server, expected)
        door = server._bulk._door
        assert len(door._strangers) <= 128
        assert sum(ended(stranger) for stranger in strangers) >= 172
        assert door.pushed_out.count >= 172  # lines in the log, one a second at most
    until(lambda: not door._strangers)


def ended(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


# What those say that were let in


def too_many() -> bytes:
    return b"".join(request(number, 10_000) for number in range(1, 1200))


BROKEN: dict[str, bytes] = {
    "kind 0": header(0, 1),
    "kind 99": header(99, 1),
    "a reply": header(Kind.REPLY, 1, 4) + b"abcd",
    "an end": header(Kind.END, 1),
    "an error": header(Kind.ERROR, 1),
    "flags": header(Kind.REQUEST, 1, flags=1),
    "reserved": header(Kind.CANCEL, 1, reserved=1),
    "a cancel with a payload": header(Kind.CANCEL, 1, 3) + b"abc",
    "a request that is too large": header(Kind.REQUEST, 1, SMALL_REQUEST_BYTES + 1),
    "a request of 2^64 - 1 bytes": header(Kind.REQUEST, 1, (1 << 64) - 1),
    "a request that is no message": header(Kind.REQUEST, 1, 4) + b"\xff\xff\xff\xff",
    "noise": bytes(range(256)) * 8,
    "a number in use": request(1, 10_000) + request(1),
    "a number that waits": request(1, 10_000) + request(2) + request(2),
    "too many requests": too_many(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_frames_that_break_the_protocol_end_the_channel(server, expected, name, caplog):
    caplog.set_level(logging.WARNING, "mixserve")
    before = bulk_connection.BROKEN.count
    with channel(server) as made:
        with suppress(ConnectionError):
            made.sendall(BROKEN[name])
        assert ends(made)
    assert bulk_connection.BROKEN.count == before + 1
    assert [record for record in caplog.records if record.exc_info] == []
    serves(server, expected)
    until(lambda: not len(threads_of(server)))


@pytest.mark.parametrize("in_the_method", [False, True])
def test_requests_that_wait_take_bounded_memory(server, expected, in_the_method):
    many = (900 << 10) * "x"
    method, data = (many, b"") if in_the_method else (methods.STREAM_BATCHES, many.encode())
    with channel(server) as made:
        made.sendall(request(1, 1 << 30))
        made.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            for number in range(2, 1000):
                made.sendall(encode_bulk_request(number, method, data))
                sent += len(many)
        (connection,) = threads_of(server)._connections
        assert len(connection._inbox) + sum(map(memory_of, connection._waiting.values())) < 3 << 20
        assert sent < 64 << 20
    serves(server, expected)


def memory_of(waiting: tuple) -> int:
    return sum(len(part) for part in waiting if isinstance(part, str | bytes))


ANSWERED: dict[str, bytes] = {
    "a single call": encode_bulk_request(7, methods.GET_BATCH_AT, b""),
    "a session": encode_bulk_request(7, methods.OPEN_SESSION, b""),
    "no method": encode_bulk_request(7, "", b""),
    "a long method": encode_bulk_request(7, "/x" * 100, b""),
    "a request that is none": encode_bulk_request(7, methods.STREAM_BATCHES, b"\xff\xff"),
    "a request of an unknown mixture": encode_bulk_request(7, methods.STREAM_BATCHES, b"\x0a\x05\x0a\x03abc"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_requests_that_are_wrong_get_an_error_and_the_channel_goes_on(server, expected, name):
    with channel(server) as made:
        for _ in range(3):
            made.sendall(ANSWERED[name])
            found, payload = frame(made)
            assert (found.kind, found.stream) == (Kind.ERROR, 7)
            assert len(str(decode_bulk_error(payload))) < 1000
        made.sendall(request(8))
        found, payload = frame(made)
        np.testing.assert_array_equal(decode_batch(payload)[1]["tokens"], expected[0])
        assert frame(made)[0] == (Kind.END, 8, 0, False)


def test_cancels_of_current_waiting_unknown_and_ended_streams(server, expected):
    """Each stream has one end, in the order of the requests."""
    cancel = Kind.CANCEL
    with channel(server) as made:
        made.sendall(request(1))
        assert [frame(made)[0].kind for _ in range(2)] == [Kind.REPLY, Kind.END]
        made.sendall(header(cancel, 1) + header(cancel, 99))  # ended, and unknown
        made.sendall(request(2, 100_000) + request(3, 2) + request(4, 1, start=5 * SIZE))
        assert frame(made)[0][:2] == (Kind.REPLY, 2)
        made.sendall(header(cancel, 3) + header(cancel, 3) + header(cancel, 2) + header(cancel, 2))
        found = [one := frame(made)[0]]
        while one.stream == 2 and one.kind == Kind.REPLY:
            found = [one := frame(made)[0]]
        found += [frame(made)[0]]
        assert [one[:2] for one in found] == [(Kind.END, 2), (Kind.END, 3)]
        last, payload = frame(made)
        assert last[:2] == (Kind.REPLY, 4)
        np.testing.assert_array_equal(decode_batch(payload)[1]["tokens"], expected[5])
        assert frame(made)[0] == (Kind.END, 4, 0, False)


def test_a_flood_of_cancels_costs_little(server, expected):
    """Of 65,536 frames, with 1,000 requests that wait: a search for each took seconds."""
    with channel(server) as made:
        made.sendall(request(1, 100_000) + b"".join(request(number) for number in range(2, 1002)))
        assert frame(made)[0][:2] == (Kind.REPLY, 1)
        begun = time.process_time()
        made.sendall(header(Kind.CANCEL, 1001) * 65_536 + header(Kind.CANCEL, 1))
        while (found := frame(made)[0]).kind != Kind.END:
            assert found.stream == 1
        assert time.process_time() - begun < 0.7
    serves(server, expected)


def test_a_request_may_come_byte_by_byte(server, expected):
    with channel(server) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(1):
            made.sendall(bytes([byte]))
            time.sleep(0.0005)
        found, payload = frame(made)
        assert found[:2] == (Kind.REPLY, 1)
        np.testing.assert_array_equal(decode_batch(payload)[1]["tokens"], expected[0])


def test_a_client_that_goes_in_the_middle_of_anything_leaves_nothing(server):
    for sent in (b"", request(1)[:5], request(1)[:40], request(1), request(1, 10_000), request(1, 10_000) * 2):
        for reset in (False, True):
            with channel(server) as made:
                made.sendall(sent)
                if reset:
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: not len(threads_of(server)))


# Clients that do not read


@pytest.fixture
def soon_stalled(server, monkeypatch) -> float:
    monkeypatch.setattr(threads_of(server), "_stalled_s", 1.0)
    monkeypatch.setattr(bulk_threads, "_LOOK_EVERY_S", 0.1)
    return 1.0


def test_clients_that_never_read_hold_no_thread_and_are_cut_off(server, expected, soon_stalled, caplog):
    with ExitStack() as opened:
        stalled = [opened.enter_context(channel(server)) for _ in range(40)]
        for made in stalled:
            made.sendall(request(1, 1 << 30))
        begun = time.monotonic()
        serves(server, expected)
        assert time.monotonic() - begun < 2
        until(lambda: threads_of(server).stalled.count == 40)
        assert 1 <= caplog.text.count("took nothing for 1 s: ending its stream") <= 5  # one line a second
        assert all(map(ends, stalled))
    until(lambda: not len(threads_of(server)))


def test_a_client_that_reads_slowly_is_not_cut_off_and_holds_no_thread(server, soon_stalled):
    """In a frame of 64 MiB, whose bytes a dozen clients take in small pieces: none of them has a thread to itself."""
    rows = 4096
    with ExitStack() as opened:
        slow = [opened.enter_context(channel(server)) for _ in range(12)]
        going = threading.Event()
        opened.callback(going.set)
        for made in slow:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            made.sendall(large(rows))
        readers = [threading.Thread(target=trickle, args=(made, going)) for made in slow]
        for reader in readers:
            reader.start()
        time.sleep(0.5)  # by then every thread has a frame in hand, if it keeps it
        begun = time.monotonic()
        with channel(server) as other:
            other.sendall(request(1))
            assert frame(other)[0].kind == Kind.REPLY
        took_s = time.monotonic() - begun
        going.set()
        for made in slow:  # some wait for bytes: for their replies there was no room, and they got an error
            made.shutdown(socket.SHUT_RDWR)
        for reader in readers:
            reader.join(20)
        assert took_s < 5.0  # a dozen threads that each keep a frame would take longer than the trickles last


def large(rows: int) -> bytes:
    wanted = StreamRequest(BatchRequest("train", 0, rows, key_words(3)), rows, 4, rows)
    return encode_bulk_request(1, methods.STREAM_BATCHES, encode_stream_request(wanted))


def trickle(connection: socket.socket, going: threading.Event) -> None:
    with suppress(OSError):
        while not going.is_set():
            if not connection.recv(1 << 18):
                return
            time.sleep(0.01)


# Ports


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1"])
def test_a_port_that_is_in_use_at_one_address_of_the_host_is_an_error(host):
    """Otherwise clients at that address would find another server."""
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        door = BulkDoor(lambda *_: None)
        try:
            with pytest.raises(OSError, match=str(port)):
                door.listen(host, port, None)
        finally:
            door.close()
        door = BulkDoor(lambda *_: None)
        door.listen(host, 0, None)
        assert door.port not in (0, port)
        door.close()


def test_the_door_stays_open_for_others_when_a_client_cannot_be_let_in(server, expected, monkeypatch, caplog):
    """As where the process has no more threads."""
    monkeypatch.setattr(threads_of(server), "add", lambda _: {}["no threads"])
    offer = offer_of(server)
    with closing(tcp(offer.port)) as made:
        made.sendall(HELLO + offer.token)
        assert ends(made)
    assert "cannot open a bulk channel" in caplog.text
    monkeypatch.undo()
    serves(server, expected)


def test_more_offers_than_channels_let_in_no_more_clients_than_there_may_be(server, monkeypatch):
    until(lambda: not len(threads_of(server)))
    offers = [offer_of(server) for _ in range(5)]
    monkeypatch.setattr(bulk, "connection_limit", lambda: 4)
    with ExitStack() as opened:
        said = list[bytes]()
        for offer in offers:
            made = opened.enter_context(closing(tcp(offer.port)))
            made.sendall(HELLO + offer.token)
            with suppress(ConnectionError):
                said.append(made.recv(100))
        assert said.count(WELCOME) == 2
        with MixClient.connect(server.address, shared_memory=False, patience_s=5) as client:
            assert len(client.get_batch_at(0, 64, 3)["tokens"]) == 64
            assert client.transport.startswith("grpc")


def test_one_host_gets_half_of_the_channels(monkeypatch, caplog):
    channels = bulk.BulkChannels(lambda *_: iter(()))
    monkeypatch.setattr(bulk, "connection_limit", lambda: 8)
    admission = Guard(None).admit(methods.GET_SERVER, ())
    ends = list[socket.socket]()

    def is_let_in(peer: str) -> bool:
        offer = channels.offer(admission)
        begin = None if offer is None else channels._admit(offer.token, peer)
        if begin is None:
            return False
        ours, theirs = socket.socketpair()
        ends.append(theirs)
        begin(PlainPipe(ours))
        return True

    try:
        assert [is_let_in(f"ipv4:192.0.2.1:{port}") for port in (1, 2, 3)] == [True, True, False]
        assert "192.0.2.1 has half of all bulk channels" in caplog.text
        assert is_let_in("ipv4:192.0.2.2:1")
        ends[0].close()
        until(lambda: is_let_in("ipv4:192.0.2.1:4"))
        assert [is_let_in("ipv4:192.0.2.3:1"), is_let_in("unix:")] == [True, False]  # there are four
    finally:
        channels._threads.close()
        for one in ends:
            one.close()
        channels._door.close()


def test_a_server_stops_while_clients_of_all_kinds_are_connected(big_node):
    running = serve({"train": big_node}, shared_memory=False)
    with ExitStack() as opened:
        for sent in (b"", request(1), request(1, 1 << 30), request(1)[:20]):
            opened.enter_context(channel(running)).sendall(sent)
        port = offer_of(running).port
        opened.enter_context(closing(tcp(port)))
        begun = time.monotonic()
        running.stop(grace_s=0.5)
        assert time.monotonic() - begun < 4
    assert running._bulk is not None
    until(lambda: not len(threads_of(running)))
    assert not threads_of(running)._watching.is_alive()


def test_a_channel_that_has_nothing_to_do_after_the_end_of_a_server_is_closed():
    """Its thread may come back when nothing is watched any more."""
    threads = bulk_threads.BulkThreads()
    threads.close()
    mine, theirs = socket.socketpair()
    with closing(mine):
        threads._run(BulkConnection(PlainPipe(theirs), "unix:", no_replies))
        mine.settimeout(5)
        assert mine.recv(1) == b""


def no_replies(method: str, data: bytes) -> Generator[bytes]:
    yield from ()
