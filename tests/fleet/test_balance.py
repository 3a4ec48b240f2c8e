"""Readers of several clients spread evenly over replicas, stay there, and come back to one that was away."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import pytest

from benchmarks.balance import Waiting, node
from mixserve import MixServer, serve
from mixserve_client import MixClient
from tests.waiting import wait_until

REPLICAS = 4


class Fleet:
    """Replicas in this process, each with a source that reads one after another."""

    def __init__(self, stack: ExitStack):
        self._stack = stack
        self.sources = [Waiting() for _ in range(REPLICAS)]
        self.servers = [self._serve(source) for source in self.sources]
        self.addresses = [one.address for one in self.servers]

    def _serve(self, source: Waiting, address: str = "127.0.0.1:0") -> MixServer:
        made = serve({"train": node(source)}, address, shared_memory=False)
        source.is_on = True
        return self._stack.enter_context(made)

    def stop(self, number: int) -> None:
        self.servers[number].stop(0)

    def start(self, number: int) -> None:
        self.servers[number] = self._serve(self.sources[number], self.addresses[number])

    def readers(self) -> list[int]:
        """How many readers each replica has, as it tells clients."""
        return [one._services.mix.present.count() for one in self.servers]

    def reads(self) -> list[int]:
        return [one.reads for one in self.sources]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack)


@contextmanager
def reading(fleet: Fleet, clients: int, *, calls: bool = False, bulk: bool = True) -> Iterator[None]:
    """So many clients read meanwhile, as fast as they can."""
    over, failed = threading.Event(), list[BaseException]()

    def read(key: int) -> None:
        try:
            with MixClient.connect(fleet.addresses, shared_memory=False, bulk=bulk, name=f"client {key}") as client:
                batches = (client.get_batch_at(at * 8, 8, key) for at in count()) if calls else client.batches(256, key)
                while not over.is_set():
                    next(batches)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read, args=(key,), daemon=True) for key in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for source in fleet.sources:
            source.is_on = False
        for thread in threads:
            thread.join()
    assert not failed


@pytest.mark.parametrize("how", ["bulk", "grpc", "calls"])
def test_readers_spread_evenly_and_stay(fleet: Fleet, how: str):
    with reading(fleet, 2 * REPLICAS, calls=how == "calls", bulk=how == "bulk"):
        even = [2] * REPLICAS
        wait_until(lambda: fleet.readers() == even and is_even(fleet), "two readers at each replica")
        assert is_even(fleet)


def test_the_readers_of_one_replica_take_turns():
    counts, over = [0] * 16, threading.Event()

    def read(key: int) -> None:
        with MixClient.connect(server.address, shared_memory=False) as client:
            batches = client.batches(256, key)
            while not over.is_set():
                next(batches)
                counts[key] += 1

    source = Waiting()
    with serve({"train": node(source)}, shared_memory=False) as server:
        source.is_on = True
        threads = [threading.Thread(target=read, args=(key,), daemon=True) for key in range(len(counts))]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: max(counts) >= 8, "batches")
            found = list(counts)
        finally:
            over.set()
            source.is_on = False
            for thread in threads:
                thread.join()
    assert min(found) >= 5, found


def is_even(fleet: Fleet) -> bool:
    """Whether each replica has about as many of the next reads as the others."""
    before = fleet.reads()
    wait_until(lambda: sum(fleet.reads()) - sum(before) > 60 * REPLICAS, "reads")
    found = [after - then for after, then in zip(fleet.reads(), before, strict=True)]
    return min(found) > 0.9 * sum(found) / REPLICAS


def test_readers_come_back_to_a_replica_that_was_away(fleet: Fleet):
    with reading(fleet, 2 * REPLICAS):
        wait_until(lambda: fleet.readers() == [2] * REPLICAS, "two readers at each replica")
        fleet.stop(0)
        wait_until(lambda: sorted(fleet.readers()[1:]) == [2, 3, 3], "the readers at the others")
        fleet.start(0)
        wait_until(lambda: fleet.readers() == [2] * REPLICAS, "two readers at each replica again")
