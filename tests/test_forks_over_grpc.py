"""Forks beside calls over gRPC. Each case runs in its own process: a test beside it must not have a server there."""

import asyncio
import gc
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, RemoteSource, serve
from mixserve_client import AsyncMixClient, MixClient
from mixserve_client.transport.forking import GATE
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.wire import methods
from tests.forked import SOON_S, Forked, in_a_fork, wait_for_line
from tests.processes import DEADLINE_S, ONE_SIZE, freeze

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

NO_GRPC = "InvalidRequest: this process ({pid}) was forked while its parent had a gRPC server"


def make_node() -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=2, weights=(0.5, 0.5), plan_sizes=ONE_SIZE, sampling="epoch")
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(1000)}) for _ in range(2)])


def serve_numbers() -> None:
    running = serve({"train": make_node()}, shared_memory=False)
    print(f"serving on {running.address}", flush=True)
    sys.stdin.read()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Forked]:
    """A server in its own process."""
    process = Forked(serve_numbers, log=tmp_path_factory.mktemp("server") / "log")
    yield process
    process.kill()


@pytest.fixture(scope="module")
def address(server) -> str:
    return wait_for_line(server, lambda log: re.search(r"serving on (\S+)", log), DEADLINE_S).group(1)


def in_a_process(case: Callable[..., None], *arguments: Any, log: Path) -> str:
    """What `case` wrote in its own process, in which nothing was forked before and no server runs."""
    process = Forked(_with_forks, case, *arguments, log=log)
    assert process.wait(DEADLINE_S) == 0, process.log()
    return process.log()


def _with_forks(case: Callable[..., None], *arguments: Any) -> None:
    warnings.filterwarnings("ignore", ".*fork")
    case(*arguments)


def x(batch: Any) -> list[int]:
    return np.asarray(batch["x"]).tolist()


def a_server_is_its_parents_and_no_calls_are_made_beside_it(address: str) -> None:
    node = make_node()
    with (
        serve({"train": node}, shared_memory=False) as server,
        MixClient.connect(server.address, patience_s=20) as client,
        MixClient.connect(address, patience_s=20) as elsewhere,
    ):
        assert in_a_fork(server.stop) == "True"
        assert client.mixtures() == elsewhere.mixtures() == ("train",)
        for task in (client.mixtures, elsewhere.mixtures, lambda: next(elsewhere.batches(5, 7))):
            assert in_a_fork(task).startswith(NO_GRPC)
        assert in_a_fork(lambda: serve({"train": node}, shared_memory=False)).startswith(NO_GRPC)
        assert NO_GRPC in in_a_fork(lambda: in_a_fork(client.mixtures))
        batches = client.batches(5, 7)
        expected = x(next(batches))
    with MixClient.connect(address, patience_s=20) as client:
        assert in_a_fork(lambda: x(next(client.batches(5, 7)))) == str(expected)


def each_process_counts_its_own_under_its_own_name(address: str) -> None:
    client = MixClient.connect(address, patience_s=20)
    batches = client.batches(5, 7)
    for _ in range(3):
        next(batches)

    def read() -> tuple[float, bool, bool, bool]:
        next(batches)
        got, told = client.stats(), client.server_stats()["mixserve_readers"]
        name = f"{socket.gethostname()}/{os.getpid()}"
        return (
            got["mixserve_client_batches_total"].value(),
            got["mixserve_client_info"].value(client=name) == 1,
            told.value(client=name) == 1,
            batches.batches.figures.number == number,
        )

    number = batches.batches.figures.number
    assert in_a_fork(read) == repr((1.0, True, True, False))
    named = MixClient.connect(address, patience_s=20, name="named")
    next(named.batches(5, 7))
    assert in_a_fork(lambda: named.stats()["mixserve_client_info"].value(client="named")) == "1.0"
    assert client.stats()["mixserve_client_batches_total"].value() == 3
    next(batches)
    assert client.stats()["mixserve_client_batches_total"].value() == 4


def a_remote_source_is_read_over_connections_of_its_own(address: str) -> None:
    source = RemoteSource(address, source="0")
    ids = np.array([5, 999, 0])
    pending = source.begin_take(ids)  # the parent's, which goes on in it
    assert in_a_fork(lambda: x(source.take(ids))) == "[5, 999, 0]"
    assert x(pending()) == x(source.take(ids)) == ids.tolist()


def threads_that_race_make_one_connection(address: str) -> None:
    client = MixClient.connect([address] * 3000, patience_s=20)
    client.mixtures()

    def race() -> int:
        sys.setswitchinterval(1e-6)
        found, begin = set[int](), threading.Barrier(16)

        def use() -> None:
            begin.wait()
            found.add(id(client._caller))

        threads = [threading.Thread(target=use) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(found)

    assert [in_a_fork(race) for _ in range(5)] == ["1"] * 5
    client.close()


def a_client_works_whatever_its_parents_threads_are_doing(address: str) -> None:
    client = MixClient.connect(address, patience_s=20)
    batches, expected = client.batches(5, 7), [x(client.get_batch_at(5 * i, 5, 7)) for i in range(4)]
    assert x(next(batches)) == expected[0]
    assert x(next(batches)) == expected[1]
    batches._turn = held = threading.RLock()
    waiting, leave = threading.Event(), threading.Event()

    def call() -> None:
        with held, client._leases._lock:
            waiting.set()
            leave.wait(SOON_S)

    busy = threading.Thread(target=call)
    busy.start()
    waiting.wait(SOON_S)
    assert in_a_fork(lambda: x(next(batches))) == str(expected[2])
    assert in_a_fork(client.close) == "None"
    leave.set()
    busy.join()
    assert x(next(batches)) == expected[2]


def what_is_dropped_leaves_the_parents_alone(address: str) -> None:
    client = MixClient.connect(address, patience_s=20)
    owned = [client, client.batches(100, 7, prefetch=50), client.session("dropped")]
    next(owned[1])
    with owned[2]._leases._lock:
        pass
    holding, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with owned[2]._leases._lock:
            holding.set()
            leave.wait(SOON_S)

    busy = threading.Thread(target=hold)
    busy.start()
    holding.wait(SOON_S)

    def drop() -> None:
        nonlocal client
        del client
        owned.clear()

    assert in_a_fork(drop) == "None"
    leave.set()
    busy.join()
    assert owned[2].next_batch(3)["x"].shape == (3,)
    next(owned[1])
    client.close()


def a_fork_lets_no_thread_be_inside_grpc(address: str) -> None:
    """Otherwise about one fork in 1,000 leaves a process whose calls hang."""
    client = MixClient.connect(address, patience_s=20)
    batches, others = client.batches(5, 7, prefetch=30), client.batches(5, 7, start=10**6)
    alone = [x(batch) for batch in itertools.islice(client.batches(5, 7), 60)]
    stop, made = threading.Event(), list[int]()

    def call() -> None:
        while not stop.is_set():
            made.append(len(client.get_batch_at(0, 5, 7)["x"]))

    calling = [threading.Thread(target=call) for _ in range(3)]
    for thread in calling:
        thread.start()
    read = list[list[int]]()
    for _ in range(30):
        read += [x(next(batches)), x(next(batches))]
        next(others)
        assert in_a_fork(lambda: x(client.get_batch_at(10, 5, 7))) == str(alone[2])
    stop.set()
    for thread in calling:
        thread.join()
    assert read == alone
    assert set(made) == {5}


def a_call_that_takes_long_is_not_waited_for(address: str, pid: int) -> None:
    client = MixClient.connect(address, patience_s=20)
    expected, found = x(client.get_batch_at(0, 5, 7)), list[list[int]]()
    calling = threading.Thread(target=lambda: found.append(x(client.get_batch_at(0, 5, 7))))
    freeze(pid)
    try:
        calling.start()
        while not GATE._calls:
            time.sleep(0.001)
        assert in_a_fork(client.mixtures).startswith(NO_GRPC)
        assert calling.is_alive()
    finally:
        os.kill(pid, signal.SIGCONT)
    calling.join(DEADLINE_S)
    assert found == [expected]
    assert in_a_fork(client.mixtures) == "('train',)"


def a_collector_that_takes_long_inside_a_call_is_not_waited_for(address: str) -> None:
    """As that of a dropped DataLoader iterator, which waits for its workers."""
    fresh, used = (MixClient.connect(address, patience_s=20) for _ in range(2))
    expected = x(used.get_batch_at(0, 5, 7))
    collecting, leave = threading.Event(), threading.Event()

    class Dropped:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            collecting.set()
            leave.wait(SOON_S)

    def collect() -> None:
        with GATE.hold():
            gc.collect()

    Dropped()
    busy = threading.Thread(target=collect)
    busy.start()
    collecting.wait(SOON_S)
    for task in (
        fresh.mixtures,
        lambda: used.get_batch_at(0, 5, 7, timeout_s=3),
        lambda: next(fresh.batches(5, 7, mixture="train")),
    ):
        assert in_a_fork(task).startswith(NO_GRPC)
    leave.set()
    busy.join()
    assert in_a_fork(lambda: x(fresh.get_batch_at(0, 5, 7))) == str(expected)


def a_thread_that_cancels_is_inside_grpc(address: str) -> None:
    client, transport = MixClient.connect(address, patience_s=20), GrpcTransport(address)
    replies = transport.stream(methods.GET_MIXTURE, b"", 5, 1, 1)
    list(replies)
    with replies._call._state.condition:  # in which gRPC cancels
        cancelling = threading.Thread(target=replies.cancel)
        cancelling.start()
        deadline = time.monotonic() + SOON_S
        while not GATE._calls:
            assert time.monotonic() < deadline, "a cancel does not count as a call"
            time.sleep(0.001)
        assert in_a_fork(client.mixtures).startswith(NO_GRPC)
    cancelling.join()
    assert in_a_fork(client.mixtures) == "('train',)"
    transport.close()
    assert not GATE._calls


def a_view_of_a_session_connects_anew(address: str) -> None:
    client = MixClient.connect(address, patience_s=20)
    with client.session("viewed") as session:
        session.next_batch(3)
        view, index = client.view_session("viewed"), session.index
        assert view.get_state()["index"] == index
        resources = client.catalog.resources
        made = resources.here
        assert in_a_fork(lambda: (view.get_state()["index"], resources.here is made)) == f"({index}, False)"
        assert view.get_state()["index"] == index


def an_asyncio_client_has_threads_of_its_own(address: str) -> None:
    client = MixClient.connect(address, patience_s=20)
    expected = [x(client.get_batch_at(5 * i, 5, 7)) for i in range(3)]
    asynchronous = AsyncMixClient(client)
    batches, opened = asynchronous.batches(5, 7), asyncio.run(asynchronous.session("asyncio"))
    assert x(asyncio.run(anext(batches))) == expected[0]

    async def use() -> Any:
        return x(await anext(batches)), await asynchronous.mixtures()

    async def forked_in_the_midst() -> str:
        async with batches._turns._lock, opened.turns._lock:
            loop = asyncio.get_running_loop()

            def anew() -> Any:
                asyncio._set_running_loop(None)
                return asyncio.run(use())

            said = in_a_fork(anew)
            assert loop.is_running()
            return said

    assert asyncio.run(forked_in_the_midst()) == repr((expected[1], ("train",)))
    assert x(asyncio.run(anext(batches))) == expected[1]
    asyncio.run(asynchronous.close())


CASES = [
    a_server_is_its_parents_and_no_calls_are_made_beside_it,
    each_process_counts_its_own_under_its_own_name,
    a_remote_source_is_read_over_connections_of_its_own,
    threads_that_race_make_one_connection,
    a_client_works_whatever_its_parents_threads_are_doing,
    what_is_dropped_leaves_the_parents_alone,
    a_collector_that_takes_long_inside_a_call_is_not_waited_for,
    a_thread_that_cancels_is_inside_grpc,
    a_view_of_a_session_connects_anew,
    an_asyncio_client_has_threads_of_its_own,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_in_a_process_that_is_forked_off(address, tmp_path, case):
    in_a_process(case, address, log=tmp_path / "log")


def test_no_thread_is_inside_grpc(address, tmp_path):
    log = in_a_process(a_fork_lets_no_thread_be_inside_grpc, address, log=tmp_path / "log")
    assert log.count("skipping fork() handlers") < 3  # otherwise at every second fork


def test_a_long_call_is_not_waited_for(server, address, tmp_path):
    in_a_process(a_call_that_takes_long_is_not_waited_for, address, server.pid, log=tmp_path / "log")
