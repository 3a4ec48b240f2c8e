"""Scenarios of clients of a DNS name, for a process with a network and a resolver of its own:

`python -m tests.fleet.name_scenarios NAME FOLDER`, as the process 0 of the namespaces that test_names.py makes.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.balance import Waiting, node
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve_client import MixClient, MixserveError, Unauthenticated
from mixserve_client.schema.stats import by_name
from tests.certificates import Authority
from tests.fleet.dns_server import DnsServer
from tests.processes import ONE_SIZE
from tests.waiting import wait_until

NAME, PORT, KEY = "mixserve.test", 50051, 7
ADDRESS = f"dns:///{NAME}:{PORT}"
DEADLINE_S = 60
FOLLOWS_S = 15.0
# An iterator goes on at other servers once it has used what it has read ahead: small batches of at most two streams.
FOLLOWS_RECORDS = 2 * 16_384


class World:
    """Servers at 127.0.0.HOST, and the name that stands for some of them."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder = folder
        self.dns = DnsServer()
        self.options: dict[str, Any] = {}
        self._stack = stack
        self._servers: dict[int, MixServer] = {}

    def serve(self, *hosts: int, make: Callable[[], MixDataSourcesNode] | None = None, **options: Any) -> None:
        for host in hosts:
            made = serve({"train": (make or make_node)()}, f"127.0.0.{host}:{PORT}", shared_memory=False, **options)
            self._servers[host] = self._stack.enter_context(made)

    def name(self, *hosts: int) -> None:
        self.dns.addresses[NAME] = [f"127.0.0.{host}" for host in hosts]

    def stop(self, host: int, grace_s: float = 0) -> None:
        self._servers.pop(host).stop(grace_s)

    def connect(self, **options: Any) -> MixClient:
        return self._stack.enter_context(
            MixClient.connect(ADDRESS, shared_memory=False, patience_s=DEADLINE_S, **options)
        )

    def readers(self) -> list[int]:
        """How many readers each server has, as it tells clients."""
        return [one._services.mix.present.count() for one in self._servers.values()]

    def records(self, host: int) -> float:
        """How many records this server has sent."""
        found = by_name(self._servers[host].stats.collect())["mixserve_records_total"]
        return sum(sample.value for sample in found.samples)


def make_node() -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(1000, dtype=np.int32)})])


class Reader:
    """Reads single batches, and compares each with the node's."""

    def __init__(self, client: MixClient):
        self._client = client
        self._node = make_node()
        self._batches = client.batches(8, KEY)
        self._at = 0

    def read(self, count: int) -> None:
        for _ in range(count):
            assert np.array_equal(
                next(self._batches)["x"], self._node.get_batch_at(self._at, 8, jax.random.key(KEY))["x"]
            )
            assert len(self._client.get_batch_at(self._at, 8, KEY)["x"]) == 8
            self._at += 8

    def read_until(self, is_so: Callable[[], bool], seconds: float = DEADLINE_S) -> float:
        """Read until then; returns how many seconds that took."""
        began = time.monotonic()
        while not is_so():
            waited_s = time.monotonic() - began
            assert waited_s < seconds, f"not so after {waited_s:.1f} s"
            self.read(10)
        return time.monotonic() - began

    def read_on_until(self, is_so: Callable[[], bool], records: int) -> int:
        """Read until then, so many records at the most; returns how many records that took."""
        began = self._at
        while not is_so():
            assert self._at - began < records, f"not so after {self._at - began:,} records"
            self.read(10)
        return self._at - began


def follows(world: World) -> None:
    """Servers come and go, and the name with them: all get requests, and no batch differs or is late."""
    world.serve(2, 3)
    world.name(2, 3)
    reader = Reader(world.connect())
    reader.read_until(lambda: min(world.records(2), world.records(3)) > 0, FOLLOWS_S)
    world.serve(4)
    asked = world.dns.asked
    world.name(3, 4)
    took_s = reader.read_until(lambda: world.dns.asked > asked, FOLLOWS_S)
    took = reader.read_on_until(lambda: world.records(4) > 0, FOLLOWS_RECORDS)
    print(f"the client looks the name up after {took_s:.1f} s, and has requests for the new server {took:,} records on")
    reader.read(50)  # until streams of before have ended
    before = world.records(2)
    reader.read(300)
    assert world.records(2) == before, "a server that the name does not stand for gets requests"
    world.stop(2)
    reader.read(50)

    world.stop(3)  # while the name stands for it
    reader.read(200)
    world.serve(5)
    world.name(5)
    world.stop(4)
    took_s = reader.read_until(lambda: world.records(5) > 0, FOLLOWS_S)
    print(f"the only server is another one after {took_s:.1f} s")
    reader.read(100)


def replaced_one_by_one(world: World) -> None:
    """Each server gets a successor at another address, which takes its place in the name before it stops."""
    hosts = [2, 3, 4]
    world.serve(*hosts)
    world.name(*hosts)
    over, waits = threading.Event(), list[float]()

    def read(reader: Reader) -> None:
        while not over.is_set():
            began = time.monotonic()
            reader.read(1)
            waits.append(time.monotonic() - began)

    with ThreadPoolExecutor(len(hosts)) as threads:
        # As many as there are servers, as each stays at one.
        reading = [threads.submit(read, Reader(world.connect())) for _ in hosts]
        try:
            for place, host in enumerate(tuple(hosts)):
                hosts[place] = host + 3
                world.serve(host + 3)
                world.name(*hosts)
                world.stop(host, grace_s=10)
                wait_until(lambda new=host + 3: world.records(new), "the successor gets requests")
        finally:
            over.set()
        for one in reading:
            one.result(DEADLINE_S)
    print(f"the longest wait for a batch of an iterator and a single one was {max(waits):.2f} s, of {len(waits)}")


def keeps_what_it_knows(world: World) -> None:
    """While the name cannot be looked up, the client goes on with the servers that it knows."""
    world.serve(2, 3)
    world.name(2, 3)
    reader = Reader(world.connect())
    reader.read_until(lambda: min(world.records(2), world.records(3)) > 0)
    world.dns.fails = True
    asked = world.dns.asked
    reader.read_until(lambda: world.dns.asked > asked)
    world.stop(2)
    reader.read(200)
    world.dns.fails = False
    world.dns.addresses.clear()
    asked = world.dns.asked
    reader.read_until(lambda: world.dns.asked > asked)
    reader.read(200)


def checks_the_name(world: World) -> None:
    """With TLS, a server must have a certificate of the name, over gRPC and over bulk channels; not of its address."""
    authority = Authority(world.folder / "authority")
    named, other = (authority.issue(host, f"DNS:{host}") for host in (NAME, "other.test"))
    world.serve(2, 3, tls={"certificate": named.certificate, "key": named.key}, insecure=True)
    world.serve(4, tls={"certificate": other.certificate, "key": other.key}, insecure=True)
    world.name(2, 3)
    client = world.connect(tls=str(authority.ca))
    reader = Reader(client)
    reader.read_until(lambda: min(world.records(2), world.records(3)) > 0)
    reader.read(100)
    assert client.stats()["mixserve_client_connections_total"].value(transport="bulk") >= 1
    world.name(2, 3, 4)
    until = time.monotonic() + FOLLOWS_S
    reader.read_until(lambda: time.monotonic() > until)
    assert not world.records(4), "a server without a certificate of the name gets requests"
    world.name(4)
    with pytest.raises(Unauthenticated, match=f"is for other.test, not for {NAME}"):
        world.connect(tls=str(authority.ca)).mixtures()


def sessions_stay(world: World) -> None:
    """A session's calls go to one server, also when the name stands for several later."""
    world.serve(2, state_dir=world.folder)
    world.name(2)
    client = world.connect()
    with client.session("s") as session:
        first = session.next_batch(8)["x"]
        world.serve(3, 4)
        world.name(2, 3, 4)
        readers = [Reader(client) for _ in range(3)]  # each stays at one server
        wait_until(
            lambda: [one.read(10) for one in readers] and min(map(world.records, (2, 3, 4))) > 0,
            "each server gets requests",
        )
        for _ in range(20):
            assert len(session.next_batch(8)["x"]) == len(first)
        assert client.sessions()[0].index == 21 * 8


def waits_for_a_name(world: World) -> None:
    """A name that does not exist yet: calls wait for it, and say what they wait for."""
    client = world.connect()
    try:
        client.get_batch_at(0, 8, KEY, timeout_s=2.0)
        raise AssertionError("there is no server")
    except MixserveError as error:
        assert NAME in str(error), error
    world.serve(2, 3)
    world.name(2, 3)
    reader = Reader(client)
    reader.read_until(lambda: min(world.records(2), world.records(3)) > 0)


def spreads_over_servers_that_come(world: World) -> None:
    """Readers of sixteen clients, and a name that stands for four servers and then for eight."""
    sources, over = list[Waiting](), threading.Event()

    def make_waiting() -> MixDataSourcesNode:
        sources.append(Waiting())
        return node(sources[-1])

    def read(key: int) -> None:
        with MixClient.connect(ADDRESS, shared_memory=False, patience_s=DEADLINE_S) as client:
            batches = client.batches(64, key)
            while not over.is_set():
                next(batches)

    def are_even(servers: int) -> bool:
        return world.readers() == [16 // servers] * servers

    world.serve(2, 3, 4, 5, make=make_waiting)
    for source in sources:
        source.is_on = True
    world.name(2, 3, 4, 5)
    with ThreadPoolExecutor(16) as threads:
        reading = [threads.submit(read, key) for key in range(16)]
        try:
            wait_until(lambda: are_even(4), "four readers at each of four servers")
            world.serve(6, 7, 8, 9, make=make_waiting)
            for source in sources:
                source.is_on = True
            world.name(*range(2, 10))
            began = time.monotonic()
            wait_until(lambda: are_even(8), "two readers at each of eight servers")
            print(f"even {time.monotonic() - began:.1f} s after four servers were eight")
        finally:
            over.set()
            for source in sources:
                source.is_on = False
        for one in reading:
            one.result(DEADLINE_S)


SCENARIOS = (
    follows,
    replaced_one_by_one,
    keeps_what_it_knows,
    checks_the_name,
    sessions_stay,
    waits_for_a_name,
    spreads_over_servers_that_come,
)


def main() -> None:
    name, folder = sys.argv[1:]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolver = Path(folder) / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n")
    subprocess.run(["mount", "--bind", resolver, "/etc/resolv.conf"], check=True)
    with ExitStack() as stack:
        next(one for one in SCENARIOS if one.__name__ == name)(World(Path(folder), stack))


if __name__ == "__main__":
    main()
