"""Bits that flip between server and client: with checksums no wrong batch is ever delivered."""

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve_client import DeadlineExceeded, MixClient, MixserveError, Unavailable
from tests.bit_flips import HOST, TO_CLIENT, TO_SERVER, BitFlips
from tests.processes import ONE_SIZE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")

FLIPS = int(os.environ.get("MIXSERVE_BIT_FLIPS", "45"))  # of replies, for each way
SIZE, ROW = 32, 64
TIMEOUT_S = 1.0  # a damaged length can make both ends wait for more
LIMIT_S = 30.0
ROUTES: dict[str, dict[str, Any]] = {"grpc": {"bulk": False}, "bulk": {}}
Read = Callable[[MixClient, int], np.ndarray]


@pytest.fixture(scope="module")
def server() -> Iterator[MixServer]:
    rows = np.random.default_rng(0).integers(0, 256, (1000, ROW), np.uint8)
    config = MixDataSourcesConfig(num_sources=1, weights=(1,), plan_sizes=ONE_SIZE)
    with serve({"train": MixDataSourcesNode(config, [ArraySource({"x": rows})])}) as running:
        yield running


def port_of(server: MixServer) -> int:
    return int(server.address.rpartition(":")[2])


@pytest.fixture
def proxy(server: MixServer) -> Iterator[BitFlips]:
    with BitFlips((port_of(server), server.bulk_port)) as running:
        yield running


@pytest.fixture(scope="module")
def expected(server: MixServer) -> np.ndarray:
    with MixClient.connect(server.address) as client:
        return client.get_batch_at(0, 100 * SIZE, 7)["x"].copy()


def single(client: MixClient, number: int) -> np.ndarray:
    return client.get_batch_at(number * SIZE, SIZE, 7, timeout_s=TIMEOUT_S)["x"]


def streamed(client: MixClient, number: int) -> np.ndarray:
    with client.batches(SIZE, 7, start=number * SIZE, prefetch=0, timeout_s=TIMEOUT_S) as batches:
        return next(batches)["x"]


def positions(client: MixClient, number: int) -> np.ndarray:
    wanted = range(number * SIZE, (number + 1) * SIZE)
    return client.get_batch_by_positions(wanted, 7, timeout_s=TIMEOUT_S)["x"]


WAYS = [(single, "grpc"), (streamed, "grpc"), (streamed, "bulk"), (positions, "bulk")]


def outcomes(
    server: MixServer,
    proxy: BitFlips,
    expected: np.ndarray,
    read: Read,
    direction: str,
    count: int,
    **options: Any,
) -> Counter[str]:
    """What became of so many batches, of each of which one bit was flipped, all over its bytes."""
    found, draw = Counter[str](), random.Random(1)
    address = f"{HOST}:{port_of(server)}"
    with MixClient.connect(address, patience_s=TIMEOUT_S, shared_memory=False, **options) as client:
        length, until = 0, time.monotonic() + LIMIT_S
        while not length:  # a busy machine may be late
            with suppress(DeadlineExceeded, Unavailable):
                for number in range(3):  # the first one opens the connections
                    passed = proxy.passed[direction]
                    read(client, number)
                length = proxy.passed[direction] - passed
            assert time.monotonic() < until, "no batch comes in time"
        for turn in range(count):
            proxy.flip(direction, turn * length // count, draw.randrange(8))
            until = time.monotonic() + LIMIT_S
            flips, number, got = proxy.flips, turn % 100, ""
            while proxy.flips == flips or not got:  # a connection may need fewer bytes than at first
                assert time.monotonic() < until
                try:
                    right = np.array_equal(read(client, number), expected[number * SIZE : (number + 1) * SIZE])
                    got = "right" if right else "wrong"
                except MixserveError as error:
                    got = type(error).__name__
            found[got] += 1
            if got not in ("right", "wrong", "CorruptReply"):
                proxy.cut()  # the next one must not meet what this one left: a connection that waits for more bytes
    assert found.total() == count
    print(f"{count} bits flipped on their way {direction}, {read.__name__}, {options}: {dict(found)}")
    return found


@pytest.mark.parametrize(("read", "route"), WAYS)
def test_no_wrong_batch_is_delivered_with_checksums(server, proxy, expected, read: Read, route: str) -> None:
    found = outcomes(server, proxy, expected, read, TO_CLIENT, FLIPS, checksum=True, **ROUTES[route])
    assert found["wrong"] == 0


@pytest.mark.parametrize(("read", "route"), WAYS)
def test_requests_that_were_damaged_bring_no_wrong_batch_either(server, proxy, expected, read: Read, route) -> None:
    found = outcomes(server, proxy, expected, read, TO_SERVER, FLIPS // 4, checksum=True, **ROUTES[route])
    assert found["wrong"] == 0


@pytest.mark.parametrize(("read", "route"), WAYS)
def test_without_checksums_most_are_delivered_as_right(server, proxy, expected, read: Read, route: str) -> None:
    """So these tests can fail, and the page that says what checksums are for is right."""
    found = outcomes(server, proxy, expected, read, TO_CLIENT, FLIPS // 3, **ROUTES[route])
    assert found["wrong"] > FLIPS // 3 * 0.5  # of the others, most damage the framing of HTTP/2 or of a message
