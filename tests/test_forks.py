"""What a forked process may do with what its parent made: it works, or says why not, and never waits for ever."""

import asyncio
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixserve import (
    ArraySource,
    MixDataSourcesConfig,
    MixDataSourcesNode,
    RandomAccessSource,
    local_client,
    serve,
)
from mixserve.servicer import Services
from mixserve.sources import ReferenceSource
from mixserve_client import AsyncMixClient, MixClient
from mixserve_client.transport.forking import GATE
from mixserve_client.transport.in_process import InProcessTransport
from tests.forked import Forked, wait_for_line
from tests.processes import DEADLINE_S, ONE_SIZE

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning"),
]

HANGS = "it hangs"
SOON_S = 10
NO_JAX = "InvalidRequest: this process ({pid}) was forked off one that had used JAX"
NO_GRPC = "InvalidRequest: this process ({pid}) was forked off one that had a gRPC server"


def in_a_fork(task: Callable[[], object]) -> str:
    """What `task` returns or raises in a process that is forked off here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SOON_S)
        try:
            said = repr(task())
        except Exception as error:
            said = f"{type(error).__name__}: {error}".replace(str(os.getpid()), "{pid}")
        os.write(writing, said.encode())
        os._exit(0)  # what JAX and gRPC do at the end of a process is not for one that lacks their threads
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    return HANGS if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else said


class Numbers:
    """Records that are their numbers."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": np.int64(index)}


def make_node(**options: Any) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=2, weights=(0.5, 0.5), plan_sizes=ONE_SIZE, **options)
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(1000)}) for _ in range(2)])


@pytest.fixture(scope="module")
def node() -> MixDataSourcesNode:
    return make_node()


@pytest.fixture(scope="module")
def epoch_node() -> MixDataSourcesNode:
    """Its batches need no program of JAX."""
    return make_node(sampling="epoch", cacheable=True)


def serve_numbers() -> None:
    running = serve({"train": make_node(sampling="epoch", cacheable=True)}, shared_memory=False)
    print(f"serving on {running.address}", flush=True)
    sys.stdin.read()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Forked]:
    """A server in a process of its own."""
    process = Forked(serve_numbers, log=tmp_path_factory.mktemp("server") / "log")
    yield process
    process.kill()


@pytest.fixture(scope="module")
def address(server) -> str:
    return wait_for_line(server, lambda log: re.search(r"serving on (\S+)", log), DEADLINE_S).group(1)


@pytest.fixture
def client(address) -> Iterator[MixClient]:
    with MixClient.connect(address, patience_s=20) as made:
        yield made


def x(batch: Any) -> list[int]:
    return np.asarray(batch["x"]).tolist()


# The server's side


def test_a_source_that_reads_in_threads_has_threads_of_its_own():
    both = threading.Barrier(2)

    class Slow(Numbers):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index in (1, 2) and not both.broken:
                both.wait(SOON_S)  # so that two threads are there
            return super().__getitem__(index)

    source = RandomAccessSource(Slow(), threads=2)
    ids = np.arange(20)
    assert x(source.take(ids)) == ids.tolist()
    both.abort()
    assert in_a_fork(lambda: x(source.take(ids))) == str(ids.tolist())
    assert x(source.take(ids)) == ids.tolist()


def test_batches_that_need_jax_are_refused(node):
    assert len(node.get_batch_at(0, 5, 7)["x"]) == 5
    assert in_a_fork(lambda: node.get_batch_at(0, 5, 7)).startswith(NO_JAX)
    with local_client({"train": node}) as client:
        batches = client.batches(5, 7, start=10**6, prefetch=0)
        next(batches)
        # Not of the blocks that are planned already: those need no JAX any more.
        assert in_a_fork(lambda: client.get_batch_at(10**6, 5, 7)).startswith(NO_JAX)
        assert in_a_fork(lambda: [next(batches) for _ in range(3000)]).startswith(NO_JAX)
        assert in_a_fork(lambda: local_client({"train": node}).get_batch_at(10**6, 5, 7)).startswith(NO_JAX)


def test_records_of_modules_that_are_compiled_are_refused():
    class Module:
        def __len__(self) -> int:
            return 100

        def element_spec(self) -> Any:
            return {"x": jax.ShapeDtypeStruct((), np.int32)}

        def get_batch_at(self, start: Any, size: int, key: Any = None) -> Any:
            return {"x": start + jnp.arange(size)}

    source = ReferenceSource(Module())
    take = partial(source.take_keyed, np.array([1, 2]), np.zeros((2, 2), np.uint32))
    assert x(take()) == [1, 2]
    with source._compiling:  # as while another thread compiles
        assert in_a_fork(take).startswith(NO_JAX)


def test_a_plan_that_the_parent_began_is_not_waited_for(node):
    finish = node.mixture.planner.begin_each(np.zeros(2, np.uint32), np.arange(5000))
    assert in_a_fork(finish).startswith(NO_JAX)
    assert len(finish().source_ids) == 5000


def test_what_needs_no_jax_works_whatever_locks_other_threads_hold(epoch_node):
    services = Services({"train": epoch_node})
    with MixClient([InProcessTransport(services)]) as client:
        expected, records = x(client.get_batch_at(0, 5, 7)), next(iter(epoch_node))
        held = client.session("held")
        held.next_batch(2)
        locks = [
            epoch_node._cache.value._lock,
            epoch_node.mixture._identifying,
            epoch_node.mixture.blocks._kept.lock,
            services.mix._replies._kept._lock,
            services.mix._replies._bytes._lock,
            services.mix._schedules._lock,
            services.state._sessions._loaded._lock,
            *(entry.lock for entry in services.state._sessions._loaded._entries.values()),
        ]
        for lock in locks:
            lock.acquire()
        turns = services.mix._turns
        taken = turns._free
        for _ in range(taken):
            turns.__enter__()
        found = [
            in_a_fork(task)
            for task in (
                lambda: x(epoch_node.get_batch_at(0, 5, 7)),
                lambda: x(client.get_batch_at(0, 5, 7)),
                lambda: x(next(client.batches(5, 7))),
                lambda: x(next(client.batches(5, 7, schedule=[(0, (0.5, 0.5))]))),
                lambda: [described.name for described in client.sessions()],
                lambda: x(client.session("another").next_batch(3))[:1],
                lambda: next(iter(epoch_node)),
            )
        ]
        for lock in locks:
            lock.release()
        for _ in range(taken):
            turns.__exit__()
    assert found[:6] == [*[str(expected)] * 4, "['held']", "[0]"]
    assert found[6] == repr(records)


def test_a_server_is_its_parents_and_no_calls_are_made_beside_it(epoch_node, address):
    with (
        serve({"train": epoch_node}, shared_memory=False) as server,
        MixClient.connect(server.address, patience_s=20) as client,
        MixClient.connect(address, patience_s=20) as elsewhere,
    ):
        assert in_a_fork(server.stop) == "True"
        assert client.mixtures() == elsewhere.mixtures() == ("train",)
        for task in (client.mixtures, elsewhere.mixtures, lambda: next(elsewhere.batches(5, 7))):
            assert in_a_fork(task).startswith(NO_GRPC)
        assert in_a_fork(lambda: serve({"train": epoch_node}, shared_memory=False)).startswith(NO_GRPC)
        assert NO_GRPC in in_a_fork(lambda: in_a_fork(client.mixtures))
        batches = client.batches(5, 7)
        expected = x(next(batches))
    with MixClient.connect(address, patience_s=20) as client:
        assert in_a_fork(lambda: x(next(client.batches(5, 7)))) == str(expected)


# The client's side


def test_threads_that_race_make_one_connection(address):
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


def test_a_client_works_whatever_its_parents_threads_are_doing(client):
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


def test_what_is_dropped_leaves_the_parents_alone(address):
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


def test_a_fork_lets_no_thread_be_inside_grpc(client, capfd):
    """Else a call of the new process hangs now and then, in about one of 1,000 forks."""
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
    assert capfd.readouterr().err.count("skipping fork() handlers") < 3  # every second time without the wait


def test_a_call_that_takes_long_is_not_waited_for(server, client):
    expected, found = x(client.get_batch_at(0, 5, 7)), list[list[int]]()
    calling = threading.Thread(target=lambda: found.append(x(client.get_batch_at(0, 5, 7))))
    server.send_signal(signal.SIGSTOP)
    try:
        calling.start()
        while not GATE._calls:
            time.sleep(0.001)
        assert in_a_fork(client.mixtures).startswith(NO_GRPC)
        assert calling.is_alive()
    finally:
        server.send_signal(signal.SIGCONT)
    calling.join(DEADLINE_S)
    assert found == [expected]
    assert in_a_fork(client.mixtures) == "('train',)"


def test_a_view_of_a_session_connects_anew(client):
    with client.session("viewed") as session:
        session.next_batch(3)
        view, index = client.view_session("viewed"), session.index
        assert view.get_state()["index"] == index
        made = client._connections.here
        assert in_a_fork(lambda: (view.get_state()["index"], client._connections.here is made)) == f"({index}, False)"
        assert view.get_state()["index"] == index


def test_an_asyncio_client_has_threads_of_its_own(client):
    expected = [x(client.get_batch_at(5 * i, 5, 7)) for i in range(3)]
    asynchronous = AsyncMixClient(client)
    batches, opened = asynchronous.batches(5, 7), asyncio.run(asynchronous.session("asyncio"))
    assert x(asyncio.run(anext(batches))) == expected[0]

    async def use() -> Any:
        return x(await anext(batches)), await asynchronous.mixtures()

    async def forked_in_the_midst() -> str:
        async with batches._turns._lock, opened._turns._lock:
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
