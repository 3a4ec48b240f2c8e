"""Name servers that do not answer: the resolver waits for them for minutes, and trainers do not."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mixserve import serve
from mixserve_client import MixClient
from mixserve_client.transport.connecting import connect_tcp
from mixserve_client.transport.endpoints import Endpoint

SILENCE_S = 30.0  # of a resolver, as glibc's with two name servers and a domain to search


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`localhost` is not resolved for half a minute; gRPC has its own resolver."""
    resolve, ended = socket.getaddrinfo, threading.Event()

    def wait(host: str, port: int, *arguments: int, flags: int = 0, **others: int):
        if host == "localhost" and not flags & socket.AI_NUMERICHOST:
            ended.wait(SILENCE_S)
        return resolve(host, port, *arguments, flags=flags, **others)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield
    ended.set()


def lookups() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mixserve-resolve"]


def test_batches_come_over_grpc_while_names_are_not_resolved(node, silent):
    with serve({"train": node}) as server:
        port = server.address.rpartition(":")[2]
        with MixClient.connect(f"localhost:{port}", shared_memory=False) as client:
            began = time.monotonic()
            batches = client.batches(4, key=1)
            first = next(batches)
            assert time.monotonic() - began < SILENCE_S / 3
            assert client.transport == f"grpc localhost:{port}"
        with MixClient.connect(server.address, shared_memory=False) as client:
            assert (next(client.batches(4, key=1))["tokens"] == first["tokens"]).all()
            assert client.transport.startswith("bulk 127.0.0.1:")


def test_one_thread_waits_for_a_name_however_many_connect(silent):
    at = Endpoint("localhost", 1)
    for _ in range(3):
        with pytest.raises(TimeoutError, match="the name servers have not told the address of localhost in time"):
            connect_tcp(at, time.monotonic() + 0.05)
    assert len(lookups()) == 1


def test_a_name_is_looked_up_again_for_the_next_connection():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        at = Endpoint("localhost", listening.getsockname()[1])
        for _ in range(2):
            connect_tcp(at, time.monotonic() + 10).close()
    with pytest.raises(OSError, match="is no name of a host"):
        connect_tcp(Endpoint("a" * 70, 1), time.monotonic() + 10)
