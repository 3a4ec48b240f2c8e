"""A client of a server with several processes: which of them it uses, and when it keeps to the shared address."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice

import numpy as np
import pytest

from mixserve import MixDataSourcesNode, local_client
from mixserve.servicer import Services
from mixserve_client import CorruptReply, MixClient, Unavailable
from mixserve_client.schema.server import BulkOffer, ServerDescription
from mixserve_client.transport.endpoints import beside
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.server import decode_server, encode_server
from tests.client.worker_processes import Process, port_of, running
from tests.conftest import assert_batches_equal

KEY, BATCH, COUNT = 7, 4096, 80  # more than are ever in flight


@pytest.fixture(scope="module")
def services(node: MixDataSourcesNode) -> Iterator[Services]:
    made = Services({"train": node})
    made.warm_up()
    yield made
    made.close()


@pytest.fixture(scope="module")
def wanted(node: MixDataSourcesNode) -> list[dict[str, np.ndarray]]:
    with local_client({"train": node}) as client:
        return list(islice(client.batches(BATCH, KEY), COUNT))


def read(client: MixClient, wanted: list[dict[str, np.ndarray]]) -> None:
    for found, expected in zip(client.batches(BATCH, KEY, prefetch=2), wanted, strict=False):
        assert_batches_equal(found, expected)


def silent(stack: ExitStack) -> str:
    """A port that takes connections and says nothing, as behind a firewall that answers for all ports."""
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f":{listening.getsockname()[1]}"


def refused(stack: ExitStack) -> str:
    """A port where nothing listens."""
    held = stack.enter_context(socket.socket())
    held.bind(("127.0.0.1", 0))
    return f":{held.getsockname()[1]}"


@pytest.mark.parametrize("closed", [silent, refused])
def test_without_a_way_to_the_workers_the_shared_address_has_all(
    services: Services, wanted, caplog, closed: Callable[[ExitStack], str]
) -> None:
    with ExitStack() as stack:
        process = Process(services, [closed(stack) for _ in range(3)])
        with running(process) as (address,), MixClient.connect(address, shared_memory=False, patience_s=20) as client:
            client.mixtures()
            began = time.monotonic()
            read(client, wanted)
            assert time.monotonic() - began < 5  # one second, and not one for each of them
            began = time.monotonic()
            read(client, wanted)
            assert time.monotonic() - began < 1 or closed is refused
            assert client.transport == f"grpc {address}, none of its 3 processes"
    said = [one.message for one in caplog.records if "can be reached" in one.message]
    assert len(said) == 1
    assert process.streams >= 2


def test_an_address_that_leads_to_another_server_is_not_used(services: Services, wanted) -> None:
    stranger = Process(services, [":1"])
    with running(stranger) as (elsewhere,):
        process = Process(services, [port_of(elsewhere)])
        with running(process) as (address,), MixClient.connect(address, shared_memory=False, patience_s=20) as client:
            read(client, wanted)
    assert process.streams > 0 == stranger.streams


def test_the_rest_of_a_lost_worker_is_asked_of_another_at_once(services: Services, wanted, monkeypatch, caplog) -> None:
    # No wait is needed.
    monkeypatch.setattr("mixserve_client.rpc.replicas.FIRST_DELAY_S", 60.0)
    monkeypatch.setattr("mixserve_client.rpc.tries._LONGEST_DELAY_S", 60.0)
    told: list[str] = []
    shared, *workers = (Process(services, told) for _ in range(3))
    with ExitStack() as stack:
        address = stack.enter_context(running(shared))[0]
        stops = list[ExitStack]()
        for worker in workers:
            stops.append(stack.enter_context(ExitStack()))
            told.append(port_of(stops[-1].enter_context(running(worker))[0]))
        client = stack.enter_context(MixClient.connect(address, shared_memory=False, patience_s=20))
        read(client, wanted)
        assert sum(worker.streams for worker in workers) > shared.streams == 0
        for stop in stops:  # the first one's streams go to the second, and then all go to the shared address
            batches = client.batches(BATCH, KEY, prefetch=2)
            for number, expected in enumerate(wanted):
                if number == 1:
                    stop.close()
                assert_batches_equal(next(batches), expected)
            assert (shared.streams > 0) == (stop is stops[-1])
        (lost, *_) = [said for said in caplog.messages if "one of its processes was lost" in said]
        assert address in lost
        assert client.stats()["mixserve_client_retries_total"].value(error="Unavailable") >= 2


def test_a_server_of_one_process_is_asked_once(services: Services, wanted) -> None:
    process = Process(services, [])
    asked = list[str]()
    answer = process.answer
    process.answer = lambda method, request: asked.append(method) or answer(method, request)
    with running(process) as (address,), MixClient.connect(address, shared_memory=False, bulk=False) as client:
        read(client, wanted)
        read(client, wanted)
        assert client.transport == f"grpc {address}"
    assert asked.count(methods.GET_SERVER) == 1


def test_a_server_that_is_lost_may_come_back_with_workers(services: Services, wanted) -> None:
    process = Process(services, [])
    with running(process) as (address,), MixClient.connect(address, shared_memory=False, patience_s=20) as client:
        read(client, wanted)
        transport = client._caller.transport
        worker = Process(services, [])
        with running(worker) as (own,):
            process.workers = worker.workers = [port_of(own)]
            read(client, wanted)
            assert not worker.streams
            transport.note_loss(None, Unavailable("lost"))  # pyright: ignore[reportAttributeAccessIssue]
            read(client, wanted)
            assert worker.streams


@pytest.mark.parametrize(
    ("target", "address", "found"),
    [
        ("host:50051", ":7", "host:7"),
        ("[::1]:50051", ":7", "[::1]:7"),
        ("dns:///host:50051", ":7", "dns:///host:7"),
        ("ipv4:10.0.0.1:50051", ":7", "ipv4:10.0.0.1:7"),
        ("host:50051", "other:7", "other:7"),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", ":7", None),
        ("unix:///run/it.sock", ":7", None),
        ("dns:///host", ":7", None),
    ],
)
def test_where_a_worker_is(target: str, address: str, found: str | None) -> None:
    assert beside(target, address) == found


@pytest.mark.parametrize("address", ["", "7", ":", ":0", ":65536", ":7x", "a b:7", "a/b:7", "a\0:7", "a" * 400 + ":7"])
def test_addresses_of_workers_that_cannot_be_are_refused(address: str) -> None:
    with pytest.raises(CorruptReply, match="worker"):
        decode_server(mix_pb2.Server(workers=[":7", address]).SerializeToString())


def test_descriptions_of_servers_travel(services: Services) -> None:
    description = ServerDescription("/a/b.sock", BulkOffer("", 7, bytes(32)), (":7", "host:8", "[::1]:9"))
    assert decode_server(encode_server(description)) == description
    with pytest.raises(CorruptReply, match="at most 1024 workers"):
        decode_server(mix_pb2.Server(workers=[":7"] * 1025).SerializeToString())
