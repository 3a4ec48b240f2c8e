"""Iterators that ask ahead for many streams over one bulk channel; sockets that are handed in as channels."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve_client import MixClient
from mixserve_client.transport.handshake import CHANNEL_SIZE, SLOT_PACKET
from mixserve_client.wire.bulk import HELLO, WELCOME, Kind
from tests.bulk.peers import exactly, frame, offer_of, request, until
from tests.conftest import ROUTES, assert_batches_equal

ROUTE = ["bulk", "shared memory"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("shm"))


@pytest.fixture(scope="module")
def server(folder) -> Iterator[MixServer]:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,))
    rows = np.arange(2 << 18).reshape(1 << 18, 2)
    with serve({"train": MixDataSourcesNode(config, [ArraySource({"x": rows})])}, shared_memory=folder) as running:
        yield running


def connect(server: MixServer, folder: str, route: str) -> MixClient:
    options = ROUTES[route] | ({"shared_memory": folder} if route == "shared memory" else {})
    client = MixClient.connect(server.address, patience_s=5, **options)
    client.get_batch_at(0, 60_000, 3)  # from now on iterators read by themselves
    return client


@pytest.mark.parametrize("route", ROUTE)
def test_thousands_of_small_streams_are_asked_for_as_the_server_takes_them(server, folder, route, caplog):
    """Every batch lies on both sides of a skip, and hundreds are fetched ahead."""
    skip = [(5 * number, 5 * number + 1) for number in range(5000)]
    with connect(server, folder, route) as client, connect(server, folder, "grpc") as plain:
        begun = time.monotonic()
        with client.batches(4, 3, skip=skip) as batches:
            came = list(islice(batches, 1500))
        assert time.monotonic() - begun < 60  # a second on a machine that does nothing else
        whole = plain.get_batch_at(0, 7500, 3)["x"]
    kept = whole[np.arange(len(whole)) % 5 != 0]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in came]), kept)
    assert "broke the protocol" not in caplog.text


@pytest.mark.parametrize("route", ROUTE)
def test_requests_of_megabytes_do_not_wait_for_replies_that_nobody_reads(server, folder, route, monkeypatch):
    assert server._bulk is not None
    monkeypatch.setattr(server._bulk._threads, "_stalled_s", 90.0)  # after which the wait of both ends is over
    skip = [(1000 * number, 1000 * number + 1) for number in range(20_000)]
    with connect(server, folder, route) as client, connect(server, folder, "grpc") as plain:
        longest_s = 0.0
        with client.batches(60_000, 3, skip=skip, prefetch=200) as batches:
            for number in range(6):
                begun = time.monotonic()
                came = next(batches)
                longest_s = max(longest_s, time.monotonic() - begun)
                assert len(came["x"]) == 60_000
                if number == 5:
                    with plain.batches(60_000, 3, skip=skip) as others:
                        assert_batches_equal(came, list(islice(others, 6))[5])
    assert longest_s < 45


# Sockets that are handed in


def hand_in(folder: str, descriptors: list[int]) -> bytes:
    (name,) = (entry for entry in os.scandir(f"{folder}/mixserve-{os.geteuid()}") if entry.name.endswith(".sock"))
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as there:
        there.settimeout(5)
        there.connect(name.path)
        socket.send_fds(there, [SLOT_PACKET.pack(CHANNEL_SIZE, 0)], descriptors)
        return there.recv(500)


def listening() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind("")  # a name that the kernel chooses
    made.listen(1)
    return made


DESCRIPTORS = Path("/proc/self/fd")
ODD: dict[str, Callable[[], list[socket.socket]]] = {
    "none": list,
    "two": lambda: list(socket.socketpair()),
    "datagrams": lambda: [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]],
    "packets": lambda: [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)[0]],
    "tcp": lambda: [socket.socket()],
    "unconnected": lambda: [socket.socket(socket.AF_UNIX)],
    "listening": lambda: [listening()],
    "its other end is closed": lambda: [socket.socketpair()[0]],
}


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs shared memory")
def test_what_is_no_socket_costs_the_server_no_descriptor(server, folder, tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert b"this descriptor is no socket" in hand_in(folder, [file.fileno()])
        before = len(list(DESCRIPTORS.iterdir()))
        for _ in range(20):
            hand_in(folder, [file.fileno()])
        until(lambda: len(list(DESCRIPTORS.iterdir())) <= before)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs shared memory")
@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_sockets_that_are_no_end_of_a_pair_harm_nobody(server, folder, name):
    made = ODD[name]()
    answer = hand_in(folder, [one.fileno() for one in made])
    for one in made:
        one.close()
    assert len(answer) >= 8
    mine, theirs = socket.socketpair()
    with closing(mine), closing(theirs):
        mine.settimeout(5)
        assert hand_in(folder, [theirs.fileno()])[0] == 1
        mine.sendall(HELLO + offer_of(server).token + request(1))
        assert exactly(mine, len(WELCOME)) == WELCOME
        assert frame(mine)[0].kind == Kind.REPLY


def test_a_socket_that_is_not_a_descriptor_of_a_socket_is_refused(server, folder):
    with open(__file__) as file:  # noqa: PTH123
        assert b"no socket" in hand_in(folder, [file.fileno()])
