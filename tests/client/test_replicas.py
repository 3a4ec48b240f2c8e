"""Several replicas: which one gets a request, which are left out, and how they come back."""

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve.servicer import Services
from mixserve.serving.server import MixServer
from mixserve_client import (
    CorruptReply,
    FingerprintMismatch,
    InvalidRequest,
    MixClient,
    ServerFault,
    Unavailable,
    UnknownMixture,
)
from mixserve_client.errors import MixserveError
from mixserve_client.rpc import replicas as rpc_replicas
from mixserve_client.rpc import tries
from mixserve_client.rpc.hedging import LATEST_S, Hedging
from mixserve_client.wire import methods
from tests.conftest import assert_batches_equal
from tests.ports import free_ports
from tests.processes import DEADLINE_S, ONE_SIZE

SIZE, KEY = 8, 5
STREAMS = (methods.STREAM_BATCHES, methods.STREAM_POSITIONS)
BATCHES = (methods.GET_BATCH_AT, *STREAMS)


def make(weights: tuple[float, float] = (0.5, 0.5)) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=2, weights=weights, plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(4000).reshape(1000, 4) + i}) for i in range(2)])


class Troubled(Services):
    """Services that answer batches late, wrongly or not at all, and count the requests for them."""

    def __init__(self, node: MixDataSourcesNode):
        super().__init__({"train": node})
        self.batches = 0
        self.delay_s = 0.0
        self.error: MixserveError | None = None
        self.hangs = threading.Event()
        self.over = threading.Event()

    def handle(self, method: str, request: bytes, *more: Any) -> bytes:
        if method == methods.GET_BATCH_AT:
            self._trouble()
        return super().handle(method, request, *more)

    def copies_rows(self, method: str, request: bytes) -> bool:
        return False  # streams may wait

    def stream(self, method: str, request: bytes, *more: Any) -> Iterator[Any]:
        self._trouble()
        yield from super().stream(method, request, *more)

    def _trouble(self) -> None:
        self.batches += 1
        while self.hangs.is_set() and not self.over.wait(0.01):
            pass
        self.over.wait(self.delay_s)
        if self.error is not None:
            raise self.error


class Running:
    """Replicas of this process."""

    def __init__(self, opened: ExitStack):
        self._opened = opened

    def start(self, node: MixDataSourcesNode, address: str = "127.0.0.1:0") -> tuple[Troubled, MixServer]:
        services = Troubled(node)
        server = MixServer(services, address)
        server.start()
        self._opened.callback(server.stop, grace_s=5)
        self._opened.callback(services.over.set)
        return services, server

    def connect(self, *addresses: str, **options: Any) -> MixClient:
        options = {"patience_s": DEADLINE_S, "attempt_s": 0.5, "shared_memory": False} | options
        return self._opened.enter_context(MixClient.connect(addresses, **options))


@pytest.fixture
def running() -> Iterator[Running]:
    with ExitStack() as opened:
        yield Running(opened)


@pytest.fixture
def two(running: Running) -> tuple[Troubled, MixServer, Troubled, MixServer]:
    return *running.start(make()), *running.start(make())


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read(client: MixClient, count: int, first: int = 0, **options: Any) -> None:
    for number in range(first, first + count):
        client.get_batch_at(number * SIZE, SIZE, KEY, **options)


# A call, a stream with its own thread (gRPC), and one that its reader reads (bulk).
READS: dict[str, Callable[[MixClient, int], Any]] = {
    "calls": lambda client, start: client.get_batch_at(start, SIZE, KEY),
    "positions": lambda client, start: client.get_batch_by_positions(range(start, start + SIZE), KEY),
    "iterators": lambda client, start: next(client.batches(SIZE, KEY, start=start, prefetch=0)),
}


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("how", READS)
def test_a_replica_that_hangs_is_left_and_comes_back(two, running, how, bulk, caplog):
    first, one, second, other = two
    alone = running.connect(other.address)
    wanted = [alone.get_batch_at(n * SIZE, SIZE, KEY) for n in range(12)]
    client = running.connect(one.address, other.address, bulk=bulk)
    for n in range(4):  # both are known
        READS[how](client, n)
    first.hangs.set()
    began = time.monotonic()
    for n in range(12):
        assert_batches_equal(READS[how](client, n * SIZE), wanted[n])
    assert time.monotonic() - began < DEADLINE_S / 2
    left = [said for said in caplog.messages if "is left out until it answers again" in said]
    assert len(left) <= 1
    if left:
        assert one.address in left[0]
        # The one that hangs gets no more requests but the probe's, until that is answered.
        first.hangs.clear()
        until(lambda: any("is back after" in said for said in caplog.messages))
    second.hangs.set()
    first.hangs.clear()
    assert_batches_equal(READS[how](client, 0), wanted[0])


def test_with_one_server_a_slow_source_has_all_the_time_that_it_needs(running):
    services, server = running.start(make())
    client = running.connect(server.address, attempt_s=0.1)
    client.mixture()
    services.delay_s = 1.0
    began = services.batches
    read(client, 1)
    assert services.batches == began + 1


def test_a_source_that_is_slow_everywhere_can_finish(two, running):
    """Each round doubles the time of an attempt, and later requests know."""
    first, one, second, other = two
    client = running.connect(one.address, other.address, attempt_s=0.2)
    client.mixture()
    first.delay_s = second.delay_s = 1.0
    read(client, 1)
    tried = first.batches + second.batches
    assert tried <= 20  # with those that would let a replica in again
    read(client, 1, 1)
    assert first.batches + second.batches <= tried + 6


def test_half_of_the_time_is_left_for_another_replica(two, running):
    first, one, second, other = two
    client = running.connect(one.address, other.address, attempt_s=60)
    read(client, 4)
    first.hangs.set()
    for number in range(4):
        client.get_batch_at(number * SIZE, SIZE, KEY, timeout_s=4)
        next(client.batches(SIZE, KEY + number, prefetch=2, timeout_s=4))
    assert second.batches


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("how", READS)
def test_a_replica_with_another_mixture_does_not_count(running, place, how, caplog):
    addresses = list[str]()
    ports = [free_ports() for _ in range(3)]
    servers = [running.start(make(), f"127.0.0.1:{port}")[1] for port in ports]
    addresses = [server.address for server in servers]
    client = running.connect(*addresses)
    wanted = [client.get_batch_at(n * SIZE, SIZE, KEY) for n in range(9)]
    servers[place].stop(grace_s=5)
    running.start(make((0.2, 0.8)), addresses[place])
    for _ in range(2):
        for n in range(9):
            assert_batches_equal(READS[how](client, n * SIZE), wanted[n])
    assert len([said for said in caplog.messages if "does not count for this mixture" in said]) <= 1


def test_the_right_mixture_is_that_of_the_first_address_that_answers(running, caplog):
    caplog.set_level(logging.WARNING)
    away = f"127.0.0.1:{free_ports()}"
    right, wrong = running.start(make((0.1, 0.9)))[1], running.start(make())[1]
    client, alone = running.connect(away, right.address, wrong.address), running.connect(right.address)
    assert client.mixture().fingerprint == alone.mixture().fingerprint
    for n in range(6):
        assert_batches_equal(client.get_batch_at(n, SIZE, KEY), alone.get_batch_at(n, SIZE, KEY))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_right_mixture_is_that_of_the_state(running, place):
    nodes = [make(), make(), make()]
    nodes[place] = make((0.1, 0.9))
    servers = [running.start(node)[1] for node in nodes]
    alone = running.connect(servers[place].address)
    theirs = alone.batches(SIZE, KEY)
    next(theirs)
    state = theirs.get_state()
    client = running.connect(*[server.address for server in servers])
    batches = client.batches(SIZE, KEY)
    batches.set_state(state)
    for _ in range(6):
        assert_batches_equal(next(batches), next(theirs))


def test_no_right_replica_is_left(running):
    ports = [free_ports() for _ in range(2)]
    servers = [running.start(make(), f"127.0.0.1:{port}")[1] for port in ports]
    client = running.connect(*[server.address for server in servers])
    batches = client.batches(SIZE, KEY, prefetch=0)
    next(batches)
    for server in servers:
        server.stop(grace_s=5)
        running.start(make((0.2, 0.8)), server.address)
    for call in (lambda: read(client, 1), lambda: next(batches), client.mixture):
        with pytest.raises(FingerprintMismatch, match="What has changed: the source"):
            call()


def test_a_mixture_that_one_replica_lacks_is_asked_of_another(running):
    one = running._opened.enter_context(serve({"other": make()}, shared_memory=False))
    other = running._opened.enter_context(serve({"train": make(), "other": make()}, shared_memory=False))
    client = running.connect(one.address, other.address)
    assert client.mixture("train").name == "train"
    client.get_batch_at(0, SIZE, KEY, mixture="train")
    with pytest.raises(UnknownMixture):
        client.mixture("none")


@pytest.mark.parametrize("error", [ServerFault("the source is broken"), CorruptReply("bits flipped")], ids=type)
@pytest.mark.parametrize("how", READS)
def test_what_one_replica_cannot_answer_is_asked_of_another(two, running, how, error):
    first, one, second, other = two
    client = running.connect(one.address, other.address)
    wanted = [client.get_batch_at(n, SIZE, KEY) for n in range(6)]
    first.error = error
    for n in range(6):
        assert_batches_equal(READS[how](client, n), wanted[n])
    second.error = error
    began = time.monotonic()
    with pytest.raises(type(error)):
        READS[how](client, 0)
    assert time.monotonic() - began < DEADLINE_S / 4  # each was asked, and no patience lost


def test_a_reply_that_is_corrupt_is_asked_for_again_of_the_only_server(running):
    services, server = running.start(make())
    client = running.connect(server.address)
    read(client, 1)
    services.error = CorruptReply("bits flipped")
    threading.Timer(0.1, lambda: setattr(services, "error", None)).start()
    read(client, 1)


def test_a_fault_waits_for_a_replica_that_is_away_only_for_a_while(running, monkeypatch):
    monkeypatch.setattr(tries, "_FAULT_PATIENCE_S", 0.5)
    services, server = running.start(make())
    client = running.connect(f"127.0.0.1:{free_ports()}", server.address)
    read(client, 1)
    services.error = ServerFault("the source is broken")
    with pytest.raises(ServerFault, match="is broken"):
        read(client, 1)
    assert services.batches > 2


def test_a_slow_replica_gets_few_requests(two, running):
    first, one, second, other = two
    client = running.connect(one.address, other.address, attempt_s=5)
    read(client, 4)
    first.delay_s = 0.3
    before, began = first.batches, second.batches
    read(client, 60, 4)
    assert first.batches - before <= 6
    assert second.batches - began >= 54


def test_outstanding_requests_are_spread(two, running):
    first, one, second, other = two
    client = running.connect(one.address, other.address, attempt_s=10)
    read(client, 2)
    first.delay_s = second.delay_s = 0.05
    before = first.batches, second.batches
    threads = [threading.Thread(target=read, args=(client, 10, n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shares = first.batches - before[0], second.batches - before[1]
    assert min(shares) >= 20, shares


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("how", READS)
def test_a_late_reply_is_asked_of_another_replica_too(two, running, how, bulk):
    first, one, _, other = two
    client = running.connect(one.address, other.address, attempt_s=DEADLINE_S / 2, hedge=True, bulk=bulk)
    wanted = [client.get_batch_at(n, SIZE, KEY) for n in range(10)]
    for n in range(10):
        assert_batches_equal(READS[how](client, n), wanted[n])
    first.hangs.set()
    began = time.monotonic()
    for n in range(10):
        assert_batches_equal(READS[how](client, n), wanted[n])
    assert time.monotonic() - began < DEADLINE_S / 4


@pytest.mark.parametrize("bulk", [False, True])
def test_a_late_reply_is_asked_of_another_replica_only_when_a_trainer_waits_for_it(running, bulk):
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    source = ArraySource({"x": np.arange(1 << 20).reshape(32, 1 << 15)})  # batches of 2 MiB: a stream for a few of them
    (first, one), (second, other) = (running.start(MixDataSourcesNode(config, [source])) for _ in range(2))
    client = running.connect(one.address, other.address, attempt_s=DEADLINE_S, hedge=True, bulk=bulk)
    hedging, taken = client._caller._replicas.hedging, 0
    wanted = [client.get_batch_at(n * SIZE, SIZE, KEY) for n in range(40)]
    with client.batches(SIZE, KEY, prefetch=4) as batches:
        for _ in range(4):  # after steps that take a while, batches are read in another thread
            assert_batches_equal(next(batches), wanted[taken])
            taken += 1
            time.sleep(0.01)
        first.hangs.set()
        second.hangs.set()
        before = first.batches, second.batches
        while (first.batches, second.batches) == before:  # until a request for later batches hangs
            assert_batches_equal(next(batches), wanted[taken])
            taken += 1
            time.sleep(0.01)
        sent = hedging.sent
        time.sleep(4 * LATEST_S)  # a long step
        assert hedging.sent == sent
        with ThreadPoolExecutor(1) as trainer:
            waiting = [trainer.submit(next, batches) for _ in range(16)]  # more than have come
            until(lambda: hedging.sent > sent)
            first.hangs.clear()
            second.hangs.clear()
            for one_batch in waiting:
                assert_batches_equal(one_batch.result(DEADLINE_S), wanted[taken])
                taken += 1


def test_few_requests_are_sent_twice():
    hedging = Hedging()
    sent = 0
    for _ in range(1000):
        hedging.note_request()
        sent += hedging.take(10.0)
        sent += hedging.take(0.1)
    assert sent == hedging.sent <= 1000 * 0.05 + 2


@pytest.mark.parametrize("how", READS)
def test_a_request_counts_as_sent_twice_only_if_it_was(two, running, how):
    first, one, _, other = two
    client = running.connect(one.address, other.address, attempt_s=DEADLINE_S, hedge=True, patience_s=DEADLINE_S)
    hedging = client._caller._replicas.hedging
    expected = [client.get_batch_at(n, SIZE, KEY) for n in range(4)]
    other.stop(grace_s=0)
    until(lambda: READS[how](client, 0) and sum(one.is_right("", time.monotonic()) for one in replicas_of(client)) == 1)
    before = hedging.sent
    first.hangs.set()
    going_on = threading.Timer(3 * LATEST_S, first.hangs.clear)
    going_on.start()
    for n in range(4):
        assert_batches_equal(READS[how](client, n), expected[n])
    going_on.join()
    assert hedging.sent == before


def replicas_of(client):
    return client._caller._replicas.all


def test_late_is_later_than_most_replies():
    hedging = Hedging()
    assert hedging.after_s == LATEST_S
    for n in range(200):
        hedging.note_wait(0.05 if n % 10 else 0.1)
    assert 0.09 <= hedging.after_s <= 0.11


def test_a_silent_server_is_named_at_growing_intervals(running, caplog, monkeypatch):
    monkeypatch.setattr("mixserve_client.rpc.stream_wait._LOG_AFTER_S", 0.2)
    services, server = running.start(make())
    client = running.connect(server.address)
    batches = client.batches(SIZE, KEY)
    next(batches)
    services.hangs.set()
    thread = threading.Thread(target=lambda: [next(batches) for _ in range(3000)], daemon=True)
    thread.start()
    said = re.compile(rf"still waiting for a reply of .*{re.escape(server.address)}, for \d+ s now")
    until(lambda: sum(bool(said.search(one)) for one in caplog.messages) >= 2)
    services.hangs.clear()
    thread.join(DEADLINE_S)
    assert sum(bool(said.search(one)) for one in caplog.messages) <= 12


def test_when_none_answers_each_is_named_with_what_it_said(running):
    addresses = [f"127.0.0.1:{free_ports()}" for _ in range(2)]
    client = running.connect(*addresses, patience_s=0.3)
    with pytest.raises(Unavailable) as raised:
        client.mixtures()
    assert all(address in str(raised.value) for address in addresses)


def test_threads_end_with_the_client(two, running):
    _, one, _, other = two
    with MixClient.connect([one.address, other.address], shared_memory=False, hedge=True, attempt_s=0.5) as client:
        read(client, 10)
        next(client.batches(SIZE, KEY))
    until(lambda: not [t for t in threading.enumerate() if t.name in ("mixserve-watch", "mixserve-replicas")])


def test_a_client_that_is_dropped_is_collected(two):
    _, one, _, other = two
    client = MixClient.connect([one.address, other.address], shared_memory=False, attempt_s=0.5)
    batches = client.batches(SIZE, KEY)
    next(batches)
    del client, batches
    until(lambda: not [t for t in threading.enumerate() if t.name == "mixserve-watch"])


@pytest.mark.parametrize("options", [{"attempt_s": 0}, {"attempt_s": "5"}, {"hedge": 1}])
def test_wrong_options(options):
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        MixClient.connect("127.0.0.1:1", **options)


def test_a_session_needs_one_server(two, running):
    _, one, _, other = two
    with pytest.raises(InvalidRequest, match="a session lives on one server, and this client has 2"):
        running.connect(one.address, other.address).session("a")


def test_replicas_that_are_away_when_the_client_starts(running):
    """The first answers come from the only one that is there."""
    server = running.start(make())[1]
    client = running.connect(*[f"127.0.0.1:{free_ports()}" for _ in range(3)], server.address)
    batches = client.batches(SIZE, KEY)
    for n in range(5):
        assert_batches_equal(next(batches), client.get_batch_at(n * SIZE, SIZE, KEY))


def test_probes_are_further_and_further_apart(running, monkeypatch):
    monkeypatch.setattr(rpc_replicas, "_FIRST_PROBE_S", 0.05)
    first, one = running.start(make())
    _, other = running.start(make())
    client = running.connect(one.address, other.address, attempt_s=0.1)
    read(client, 4)
    first.hangs.set()
    with contextlib.suppress(MixserveError):
        for n in range(20):
            read(client, 1, n)
    time.sleep(2.0)  # in which probes would come every 0.05 s
    assert first.batches < 20
