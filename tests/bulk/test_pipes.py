"""The connections of bulk channels themselves: partial sends, TLS, interruptions in the middle of a frame."""

import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest

from mixserve import MixServer, ServerTls, serve
from mixserve_client import DeadlineExceeded, MixClient
from mixserve_client.transport.base import Replies
from mixserve_client.transport.buffers import MemoryPool
from mixserve_client.transport.bulk_connection import BulkConnection
from mixserve_client.transport.pipes import PATIENCE_S, Pipe, PlainPipe, TlsPipe
from mixserve_client.wire.bulk import (
    ALPN,
    HEADER_BYTES,
    HELLO,
    WELCOME,
    Kind,
    decode_bulk_request,
    decode_header,
    encode_bulk_request,
)
from tests.bulk.peers import DEADLINE_S, SIZE, TOKEN, header, until
from tests.certificates import NEEDS_OPENSSL, Authority, Made

Pair = tuple[Pipe, Pipe]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made.in_folder(tmp_path_factory.mktemp("certificates"))


def over_unix() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def over_tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        left = socket.create_connection(listening.getsockname())
        return left, listening.accept()[0]


def secure(made: Made) -> Pair:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(made.server.certificate, made.server.key)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    left, right = over_tcp()
    found = list[ssl.SSLSocket]()
    shaking = threading.Thread(target=lambda: found.append(server.wrap_socket(right, server_side=True)))
    shaking.start()
    mine = TlsPipe(client.wrap_socket(left))
    shaking.join()
    return mine, TlsPipe(found[0])


@pytest.fixture(params=["tcp", "unix", pytest.param("tls", marks=NEEDS_OPENSSL)])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == "tls":
        pipes = secure(request.getfixturevalue("made"))
    else:
        left, right = over_tcp() if request.param == "tcp" else over_unix()
        pipes = PlainPipe(left), PlainPipe(right)
    yield pipes
    for pipe in pipes:
        pipe.close()


def test_megabytes_come_whole_both_ways_at_once(pair):
    data = [np.random.default_rng(side).bytes(8 << 20) for side in range(2)]
    came = [bytearray(8 << 20) for _ in range(2)]

    def send(side: int) -> None:
        parts = [memoryview(data[side])[at : at + 700_001] for at in range(0, 8 << 20, 700_001)]
        while parts:
            pair[side].send(parts, wait=True)

    def receive(side: int) -> None:
        view, there = memoryview(came[side]), 0
        while there < len(view):
            there += pair[1 - side].receive(view[there : there + 300_000], wait=True, whole=side == 0) or 0

    threads = [threading.Thread(target=task, args=(side,)) for task in (send, receive) for side in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert came == data


def test_a_peer_that_takes_a_little_at_a_time_holds_the_sender_for_a_moment_only(pair):
    """Every piece within the time for which a sender waits, and a frame that takes seconds."""
    over = threading.Event()

    def take() -> None:
        into = memoryview(bytearray(64 << 10))
        while not over.is_set():
            pair[1].receive(into, wait=False)
            time.sleep(0.01)

    taking = threading.Thread(target=take)
    taking.start()
    try:
        parts = [memoryview(bytes(64 << 20))]
        begun = time.monotonic()
        pair[0].send(parts, wait=True)
        assert time.monotonic() - begun < 6 * PATIENCE_S
        assert parts
    finally:
        over.set()
        taking.join()


def test_nothing_is_waited_for_without_wait(pair):
    into, parts = memoryview(bytearray(100)), [memoryview(bytes(64 << 20))]
    assert least_s(lambda: pair[0].receive(into, wait=False)) < 0.9 * PATIENCE_S
    assert least_s(lambda: pair[1].send(parts, wait=False)) < 0.9 * PATIENCE_S
    assert sum(map(len, parts)) > 1 << 20


def least_s(call: Callable[[], object]) -> float:
    """The shortest of five times: other processes seldom take the machine for each."""
    took = list[float]()
    for _ in range(5):
        begun = time.monotonic()
        assert call() is None
        took.append(time.monotonic() - begun)
    return min(took)


def test_after_a_shutdown_nothing_comes_that_was_not_sent(pair):
    """What was sent with TLS does not come as it is on the wire."""
    pair[1].send([memoryview(bytes(50_000))], wait=True)
    until(lambda: pair[0].wait(0.1))
    pair[0].shutdown()
    into = memoryview(bytearray(b"x" * 50_000))
    received = pair[0].receive(into, wait=True) or 0
    assert bytes(into[:received]) == bytes(received)
    with pytest.raises((ConnectionError, ssl.SSLError)):  # and nothing goes out
        pair[0].send([memoryview(bytes(10))], wait=True)


def test_a_pipe_may_be_used_again_within_a_call_of_it(pair):
    """As a finalizer does that runs in the middle of one."""
    lock = getattr(pair[0], "_lock", threading.RLock())
    done = threading.Event()

    def nested() -> None:
        with lock:
            pair[0].send([memoryview(b"abc")], wait=True)
            done.set()

    threading.Thread(target=nested, daemon=True).start()
    assert done.wait(5)


# Both ends of a client's connection


class Server:
    """A server that is always there."""

    def ask(self, timeout_s: float) -> Replies:
        raise NotImplementedError

    def note_reply(self) -> None:
        pass

    def note_loss(self, error: OSError, /) -> None:
        pass


def opened(pair: Pair) -> "BulkConnection[Server]":
    pair[1].send([memoryview(WELCOME)], wait=True)
    return BulkConnection(pair[0], "a channel", TOKEN, time.monotonic() + 5, MemoryPool(), Server(), False)


def test_what_came_with_other_bytes_is_there_though_little_time_is_left(pair):
    """TLS holds it already, so that the socket has nothing more to say."""
    connection, took = opened(pair), list[float]()
    for number in range(1, 6):  # the machine may be busy for some of them
        replies = connection.open("/a", b"")
        sent = header(Kind.REPLY, number, 15_000) + bytes(15_000) + header(Kind.END, number)
        pair[1].send([memoryview(sent)], wait=True)
        begun = time.monotonic()
        replies.wait_until(begun + PATIENCE_S * 0.9)
        with suppress(DeadlineExceeded):
            assert [len(reply) for reply in replies] == [15_000]
            took.append(time.monotonic() - begun)
        if min(took, default=PATIENCE_S) < PATIENCE_S * 0.5:
            break
    else:
        raise AssertionError(f"it was waited for: {took}")
    connection.close()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
def test_a_handler_that_cancels_in_the_middle_of_a_request_leaves_its_frame_whole(pair):
    connection = opened(pair)
    first, second = connection.open("/a", b"1"), connection.open("/a", b"2")
    came, large, cancelled = bytearray(), bytes(range(256)) * (4 << 14), threading.Event()
    before_it = len(HELLO) + len(TOKEN) + sum(len(encode_bulk_request(n, "/a", b"1")) for n in (1, 2))

    def take() -> None:
        into = memoryview(bytearray(64 << 10))
        while len(came) <= before_it:
            came.extend(into[: pair[1].receive(into, wait=True) or 0])
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)  # in the middle of the request
        cancelled.wait(DEADLINE_S)  # until then the rest of it fills the socket
        while (count := pair[1].receive(into, wait=True)) != 0:
            came.extend(into[: count or 0])

    taking = threading.Thread(target=take)

    def cancel(*_: object) -> None:
        connection.cancel(second)
        cancelled.set()

    before = signal.signal(signal.SIGUSR1, cancel)
    try:
        taking.start()
        connection.open("/b", large)
    finally:
        cancelled.wait(DEADLINE_S)
        signal.signal(signal.SIGUSR1, before)
    connection.close()
    taking.join(DEADLINE_S)
    del came[: len(HELLO) + len(TOKEN)]
    found = list[tuple[Kind, int]]()
    while came:
        kind, number, length, _ = decode_header(came)
        if number == 3:
            assert decode_bulk_request(bytes(came[HEADER_BYTES : HEADER_BYTES + length])) == ("/b", large)
        found.append((kind, number))
        del came[: HEADER_BYTES + length]
    assert found == [(Kind.REQUEST, 1), (Kind.REQUEST, 2), (Kind.REQUEST, 3), (Kind.CANCEL, 2)]
    assert first.number == 1


# Real servers with TLS


@pytest.fixture(scope="module")
def server(big_node, made: Made) -> Iterator[MixServer]:
    tls = ServerTls(made.server.certificate, made.server.key)
    with serve({"train": big_node}, tls=tls, shared_memory=False) as running:
        yield running


def batches_over(server: MixServer, ca: Path, count: int, **options: bool) -> tuple[np.ndarray, str]:
    with MixClient.connect(server.address, tls=ca, shared_memory=False, **options) as client:
        client.mixtures()
        begun = time.monotonic()
        with client.batches(SIZE, 3) as batches:
            found = np.array([next(batches)["tokens"] for _ in range(count)])
        assert time.monotonic() - begun < 5
        return found, client.transport


@NEEDS_OPENSSL
def test_batches_come_over_a_channel_with_tls(server, made):
    found, transport = batches_over(server, made.authority.ca, 300)
    assert transport.startswith("bulk")
    expected, transport = batches_over(server, made.authority.ca, 300, bulk=False)
    assert transport.startswith("grpc")
    np.testing.assert_array_equal(found, expected)


@NEEDS_OPENSSL
def test_clients_of_a_server_with_tls_speak_tls_or_are_let_out(server, made):
    with MixClient.connect(server.address, tls=made.authority.ca, shared_memory=False) as client:
        client.get_batch_at(0, 64, 3)
        port = int(client.transport.partition(",")[0].rpartition(":")[2])
    for say in (HELLO + TOKEN, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"):
        with closing(socket.create_connection(("127.0.0.1", port), DEADLINE_S)) as stranger:
            stranger.sendall(say)
            with suppress(OSError):
                stranger.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while came := stranger.recv(1000):  # an alert, perhaps
                    assert WELCOME not in came
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without ALPN
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    said = b""
    connected = context.wrap_socket(socket.create_connection(("127.0.0.1", port), DEADLINE_S))
    with closing(connected) as stranger, suppress(OSError):
        stranger.sendall(HELLO + TOKEN)
        said = stranger.recv(100)
    assert said == b""


@NEEDS_OPENSSL
def test_a_port_with_another_certificate_is_left_for_grpc(server, made, tmp_path, big_node):
    """As where a proxy ends the TLS of gRPC, and knows nothing of the other port."""
    other = Authority(tmp_path / "other", "Another Authority").issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other.certificate, other.key)
    context.set_alpn_protocols([ALPN])
    assert server._bulk is not None
    door = server._bulk._door
    port, accepted = door.port, list[ssl.SSLSocket]()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with suppress(OSError):
                accepted.append(context.wrap_socket(listening.accept()[0], server_side=True))

        accepting = threading.Thread(target=accept)
        accepting.start()
        door.port = listening.getsockname()[1]
        try:
            found, transport = batches_over(server, made.authority.ca, 20)
        finally:
            door.port = port
        accepting.join()
    for one in accepted:
        one.close()
    assert transport.startswith("grpc")
    assert found.shape == (20, SIZE, 4096)
