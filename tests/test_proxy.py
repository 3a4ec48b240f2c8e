"""The proxy that tests put between clients and servers does what it says, also to a real client."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from mixserve import local_client
from mixserve_client import DeadlineExceeded, MixClient, Unavailable
from tests.conftest import assert_batches_equal
from tests.proxy import Proxy

DEADLINE_S = 20
QUIET_S = 0.3  # in which nothing comes


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends back what it gets."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with closing(connection), suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=answer, args=(listening.accept()[0],)))
                threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture
def proxy(echo: str) -> Iterator[Proxy]:
    with Proxy(echo, bulk_port=0) as made:
        yield made


def connect(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), DEADLINE_S)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """What comes back."""
    sender = threading.Thread(target=connection.sendall, args=(data,))
    sender.start()
    found = bytearray()
    while len(found) < len(data) and (more := connection.recv(1 << 20)):
        found += more
    sender.join(DEADLINE_S)
    return bytes(found)


def is_silent(connection: socket.socket) -> bool:
    connection.settimeout(QUIET_S)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(DEADLINE_S)
    return False


def test_bytes_and_ends_pass(proxy):
    data = bytes(range(256)) * 40_000
    with connect(proxy) as connection:
        assert exchange(connection, data) == data
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    deadline = time.monotonic() + DEADLINE_S
    while proxy.connections:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (proxy.accepted, proxy.flipped) == (1, 0)


def test_a_stalled_one_closes_windows_and_loses_nothing(proxy):
    data = b"0123456789abcdef" * (2 << 20)
    with connect(proxy) as connection:
        assert exchange(connection, b"first") == b"first"
        proxy.stall()
        connection.settimeout(QUIET_S)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < len(data):
                sent += connection.send(data[sent : sent + (1 << 16)])
        assert is_silent(connection)
        with connect(proxy) as other:  # a new connection is accepted, and as silent
            other.sendall(b"x")
            assert is_silent(other)
        proxy.restore()
        assert exchange(connection, data[sent:])[:sent] == data[:sent][: len(data) - sent]


def test_a_black_hole_takes_all_and_then_resets(proxy):
    with connect(proxy) as connection:
        assert exchange(connection, b"first") == b"first"
        proxy.black_hole()
        connection.sendall(b"gone" * (1 << 20))
        assert is_silent(connection)
        proxy.restore()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connect(proxy) as connection:
        assert exchange(connection, b"again") == b"again"


@pytest.mark.parametrize("reset", [True, False])
def test_a_cut_link_ends_connections_and_refuses_new_ones(proxy, reset):
    with connect(proxy) as connection:
        assert exchange(connection, b"first") == b"first"
        proxy.cut(reset=reset)
        if reset:
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        else:
            assert connection.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.restore()
    with connect(proxy) as connection:
        assert exchange(connection, b"again") == b"again"
        proxy.drop()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connect(proxy) as connection:  # a link that was dropped is not cut
        assert exchange(connection, b"again") == b"again"


def test_delays_and_limits_hold_for_their_direction(proxy):
    with connect(proxy) as connection:
        proxy.delay(0.2, "down")
        began = time.monotonic()
        assert exchange(connection, b"late") == b"late"
        assert time.monotonic() - began >= 0.2
        proxy.restore()
        proxy.limit(1 << 20, "up")
        began = time.monotonic()
        assert exchange(connection, b"slow" * (1 << 17)) == b"slow" * (1 << 17)
        assert time.monotonic() - began >= 0.4


def test_flipped_bits_are_as_many_and_where_the_seed_says(echo):
    data = bytes(4 << 20)

    def run(seed: int) -> bytes:
        with Proxy(echo, bulk_port=0) as proxy, connect(proxy) as connection:
            proxy.flip_bits(1e-5, seed)
            found = exchange(connection, data)
            assert proxy.flipped == sum(byte.bit_count() for byte in found)
            return found

    first, again, other = run(1), run(1), run(2)
    assert first == again != other
    changed = [byte for byte in first if byte]
    assert 20 < len(changed) < 70  # 42 on average
    assert all(byte.bit_count() == 1 for byte in changed)


def test_a_server_that_is_away_resets_the_connection():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with (
        Proxy(f"127.0.0.1:{port}", bulk_port=0) as proxy,
        pytest.raises(ConnectionResetError),
        closing(connect(proxy)) as connection,
    ):
        connection.recv(1)


@pytest.mark.parametrize("bulk", [False, True])
def test_a_client_reads_through_it_over_grpc_and_bulk(server, node, bulk):
    with (
        Proxy(server.address) as proxy,
        MixClient.connect(proxy.address, shared_memory=False, bulk=bulk, patience_s=0.5) as client,
        local_client({"train": node}) as near,
    ):
        batches = client.batches(batch_size=4, key=1)
        for number in range(5):
            assert_batches_equal(next(batches), near.get_batch_at(4 * number, 4, 1))
        assert ("bulk" in client.transport) == bulk
        batches.close()
        proxy.stall()
        with pytest.raises(DeadlineExceeded):
            client.get_batch_at(0, 4, 1, timeout_s=0.5)
        proxy.restore()
        assert_batches_equal(client.get_batch_at(0, 4, 1, timeout_s=DEADLINE_S), near.get_batch_at(0, 4, 1))
        proxy.cut()
        with pytest.raises(Unavailable):
            client.get_batch_at(0, 4, 1)
        proxy.restore()
        assert_batches_equal(client.get_batch_at(0, 4, 1, timeout_s=DEADLINE_S), near.get_batch_at(0, 4, 1))
