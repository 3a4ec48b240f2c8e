"""Clients through real proxies: the same batches, errors and deadlines as without."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

from mixserve import ServerLimits
from mixserve_client import (
    DeadlineExceeded,
    MixClient,
    ServerFault,
    Unauthenticated,
    UnknownMixture,
)
from mixserve_client.schema.stats import by_name
from tests.certificates import Authority
from tests.ports import free_ports
from tests.proxies.running import ROUTES, Backend, Files, Route, running, why_not
from tests.proxies.sources import FAILS_AT, LARGE_BYTES, make_node, small, start
from tests.waiting import wait_until

KEY, SIZE = 7, 8
REPLICAS = 3
DEADLINE_S = 60

pytestmark = pytest.mark.timeout(600)


class Behind:
    """Clients of servers behind a proxy."""

    def __init__(self, route: Route, address: str, authority: Authority, servers):
        self.route, self.address, self.servers = route, address, servers
        self._tls = str(authority.ca) if route.tls else None

    def connect(self, **options) -> MixClient:
        return MixClient.connect(
            self.address, **{"shared_memory": False, "tls": self._tls, "patience_s": DEADLINE_S} | options
        )

    def under_way(self) -> float:
        """The streams and calls that servers answer."""
        return sum(
            sample.value
            for server in self.servers
            for sample in by_name(server.stats.collect())["mixserve_under_way"].samples
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "one")


@contextmanager
def behind(route: Route, folder: Path, authority: Authority, limits: ServerLimits | None = None) -> Iterator[Behind]:
    pair = authority.issue("server")
    both = folder / "both.pem"
    both.write_text(pair.certificate.read_text() + pair.key.read_text())
    options = {"tls": {"certificate": pair.certificate, "key": pair.key}} if route.tls else {}
    port, health_port = free_ports(), free_ports()
    with ExitStack() as opened:
        servers, backends = [], list[Backend]()
        for place in range(REPLICAS):
            server, backend = start(place, port, health_port, limits=limits, **options)
            opened.callback(server.stop, 0)
            servers.append(server)
            backends.append(backend)
        files = Files(pair, both, authority.ca) if route.tls else None
        proxy = opened.enter_context(running(route, folder, backends, files))
        yield Behind(route, proxy.address, authority, servers)


@pytest.fixture(scope="module", params=ROUTES, ids=lambda route: route.name)
def world(request, tmp_path_factory, authority) -> Iterator[Behind]:
    if why := why_not(request.param.proxy):
        pytest.skip(why)
    with behind(request.param, tmp_path_factory.mktemp("proxy"), authority) as found:
        yield found


def check(client: MixClient, batches: int = 40) -> None:
    """Read in every way, and compare with the node's own batches."""
    node = make_node(small())
    stream = client.batches(SIZE, KEY, mixture="train")
    for number in range(batches):
        expected = node.get_batch_at(number * SIZE, SIZE, jax.random.key(KEY))
        for found in (
            next(stream),
            client.get_batch_at(number * SIZE, SIZE, KEY, mixture="train"),
            client.get_batch_by_positions(range(number * SIZE, (number + 1) * SIZE), KEY, mixture="train"),
        ):
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
    stream.close()


@pytest.mark.parametrize("checksum", [False, True])
def test_batches_are_equal_and_bulk_falls_back_by_itself(world, checksum, caplog):
    with caplog.at_level(logging.WARNING, "mixserve_client"), world.connect(checksum=checksum) as client:
        check(client)
        assert client.transport == f"grpc {world.address}"
        assert client.stats()["mixserve_client_retries_total"].samples == ()
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 1, said
    assert "batches come over gRPC, not over a bulk channel" in said[0]


def records(server) -> float:
    return sum(one.value for one in by_name(server.stats.collect())["mixserve_records_total"].samples)


def test_requests_go_to_all_servers(world):
    until = time.monotonic() + DEADLINE_S
    while not all(map(records, world.servers)):
        assert time.monotonic() < until
        with world.connect(bulk=False) as client:  # level 4 balances connections
            check(client, 3)


def test_deadlines(world):
    with world.connect(bulk=False) as client:
        client.mixture("slow")
        for read in (
            lambda: client.get_batch_at(0, SIZE, KEY, mixture="slow", timeout_s=0.3),
            lambda: next(client.batches(SIZE, KEY, mixture="slow", timeout_s=0.3)),
        ):
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                read()
            assert time.monotonic() - began < 0.9
        assert len(client.get_batch_at(0, SIZE, KEY, mixture="slow", timeout_s=30)["x"]) == SIZE


def test_errors_are_the_servers(world):
    with world.connect(bulk=False) as client:
        with pytest.raises(UnknownMixture, match="large"):
            client.mixture("another one")
        with pytest.raises(UnknownMixture, match="über"):  # in trailers, text is encoded
            client.mixture("über" * 50)
        with pytest.raises(ServerFault, match=f"record {FAILS_AT} of") as raised:
            client.get_batch_by_positions(range(1000), KEY, mixture="faulty")
        assert raised.value.request_id
        came, batches = 0, client.batches(1, KEY, mixture="faulty")
        with pytest.raises(ServerFault, match=f"record {FAILS_AT} of"):  # after replies
            for _ in batches:
                came += 1
        records = client.get_plan_at(0, 1000, KEY, mixture="faulty")["record_id"]
        assert records[came] == FAILS_AT
        assert client.stats()["mixserve_client_retries_total"].samples == ()


def test_large_replies(world):
    expected = np.arange(LARGE_BYTES // 8)
    with world.connect(bulk=False) as client:
        (number,) = client.get_plan_at(0, 1, KEY, mixture="large")["record_id"]
        (row,) = client.get_batch_at(0, 1, KEY, mixture="large")["x"]
        assert np.array_equal(row, expected + number)
        (row,) = next(client.batches(1, KEY, mixture="large", stop=1))["x"]
        assert np.array_equal(row, expected + number)


def test_streams_that_are_cancelled_end_at_the_servers(world):
    with world.connect(bulk=False) as client:
        for key in range(20):
            batches = client.batches(SIZE, key, mixture="train")
            next(batches)
            batches.close()
        batches = client.batches(SIZE, KEY, mixture="slow")
        next(batches)
        batches.close()
        wait_until(lambda: not world.under_way(), "the servers end what was cancelled")
        check(client, 3)


def test_pings_while_a_call_is_silent_are_accepted(world):
    """Clients ping every 5 s; one that pings too often for a proxy loses its connection."""
    if world.route.tls:
        pytest.skip("as without TLS")
    with world.connect(bulk=False) as client:
        check(client, 1)
        assert len(client.get_batch_at(0, SIZE, KEY, mixture="very slow")["x"]) == SIZE
        found = client.stats()
        assert found["mixserve_client_retries_total"].samples == ()
        assert sum(one.value for one in found["mixserve_client_connections_total"].samples) == 1


def test_another_authority_is_not_trusted(world, tmp_path):
    if not world.route.tls:
        pytest.skip("this is about TLS")
    with (
        world.connect(tls=str(Authority(tmp_path / "other").ca)) as client,
        pytest.raises(Unauthenticated, match="the client trusts only"),
    ):
        client.mixtures(timeout_s=10)


@pytest.mark.parametrize("route", [one for one in ROUTES if not one.tls], ids=lambda route: route.name)
def test_connections_that_servers_end_by_their_age(route, tmp_path, authority):
    if why := why_not(route.proxy):
        pytest.skip(why)
    limits = ServerLimits(max_connection_age_s=0.5)
    with behind(route, tmp_path, authority, limits) as found, found.connect(bulk=False) as client:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            check(client, 10)
