"""`timeout_s` bounds a call as a whole, however many steps it takes and however silent the server is."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer
from mixserve.servicer import Services
from mixserve.serving.shared_memory import SharedMemory
from mixserve_client import AsyncMixClient, MixClient
from mixserve_client.wire import methods
from tests.processes import ONE_SIZE

pytestmark = pytest.mark.alone

TIMEOUT_S = 0.5
BOUND_S = 1.0  # leaves room for a busy machine
SLOW_S = 0.4  # per step: two of them exceed the timeout


@pytest.fixture(scope="module")
def node() -> MixDataSourcesNode:
    """A node with an end, so that an iterator asks for the end under its own schedule."""
    config = MixDataSourcesConfig(
        num_sources=2, weights=(0.5, 0.5), plan_sizes=ONE_SIZE, sampling="epoch", stop="all_exhausted"
    )
    return MixDataSourcesNode(config, [ArraySource({"x": np.zeros((1000, 512), np.int32)}) for _ in range(2)])


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def how_it_ended(call: Callable[[], Any]) -> str:
    """What `call` gave or raised, with its time if that was too long."""
    begun = time.monotonic()
    try:
        ended = repr(call())
    except Exception as error:
        ended = type(error).__name__
    took_s = time.monotonic() - begun
    return ended if took_s < BOUND_S else f"{ended} after {took_s:.2f} s"


def assert_in_time(calls: dict[str, Callable[[], Any]]) -> None:
    """All calls, made at once, fail with DeadlineExceeded, at their timeout."""
    with ThreadPoolExecutor(len(calls)) as threads:
        ended = dict(zip(calls, threads.map(how_it_ended, calls.values()), strict=True))
    assert {name: how for name, how in ended.items() if how not in ("DeadlineExceeded", "Unavailable")} == {}


KEY = 7
OWN = [(0, (1.0, 0.0))]
CLIENT: dict[str, Callable[[Any], Any]] = {
    "mixtures": lambda c: c.mixtures(timeout_s=TIMEOUT_S),
    "mixture": lambda c: c.mixture(timeout_s=TIMEOUT_S),
    "end": lambda c: c.end(schedule=OWN, timeout_s=TIMEOUT_S),
    "get_batch_at": lambda c: c.get_batch_at(0, 4, KEY, timeout_s=TIMEOUT_S),
    "get_batch_at, large": lambda c: c.get_batch_at(0, 1000, KEY, timeout_s=TIMEOUT_S),
    "get_batch_at, short": lambda c: c.get_batch_at(0, 4, KEY, schedule=OWN, allow_short=True, timeout_s=TIMEOUT_S),
    "get_batch_by_positions": lambda c: c.get_batch_by_positions([1, 5], KEY, timeout_s=TIMEOUT_S),
    "get_plan_at": lambda c: c.get_plan_at(0, 4, KEY, schedule=OWN, allow_short=True, timeout_s=TIMEOUT_S),
    "session": lambda c: c.session("a", timeout_s=TIMEOUT_S),
    "view_session": lambda c: c.view_session("a", timeout_s=TIMEOUT_S),
    "sessions": lambda c: c.sessions(timeout_s=TIMEOUT_S),
}
ITERATOR: dict[str, Callable[[Any], Any]] = {
    "next": next,
    "get_state": lambda it: it.get_state(),
    "set_state": lambda it: it.set_state(STATE),
    "schedule_weights": lambda it: it.schedule_weights((1, 0)),
    "start_prefetch": lambda it: it.start_prefetch(),
    "element_spec": lambda it: it.element_spec(),
}
STATE = {"version": 1, "mixture": "train", "fingerprint": "0" * 64, "key": [0, 7], "position": 0}


def calls_of(connect: Callable[[], MixClient], names: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """Each call with its own new client, which knows nothing yet."""

    def call(name: str) -> Any:
        with closing(connect()) as client:
            if name in CLIENT:
                return CLIENT[name](client)
            return ITERATOR[name](client.batches(4, KEY, schedule=OWN, timeout_s=TIMEOUT_S))

    return {name: partial(call, name) for name in names}


def test_every_call_of_a_silent_server_ends_in_time(silent):
    assert_in_time(calls_of(lambda: MixClient.connect(silent), [*CLIENT, *ITERATOR]))


def test_every_call_of_an_asyncio_client_of_a_silent_server_ends_in_time(silent):
    async def call(name: str) -> Any:
        client = AsyncMixClient.connect(silent)
        batches = client.batches(4, KEY, schedule=OWN, timeout_s=TIMEOUT_S)
        return await (CLIENT[name](client) if name in CLIENT else ITERATOR[name](batches))

    names = [*CLIENT, *ITERATOR.keys() - {"next"}]
    calls = {name: (lambda name=name: asyncio.run(call(name))) for name in names}

    async def following() -> Any:
        return await anext(AsyncMixClient.connect(silent).batches(4, KEY, timeout_s=TIMEOUT_S))

    assert_in_time(calls | {"anext": lambda: asyncio.run(following())})


class Slow(Services):
    """Services whose steps all take a while; some never end."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.delay_s, self.frozen = 0.0, frozenset[str]()
        self.over = threading.Event()

    def handle(self, method: str, request: bytes, *more: Any) -> bytes:
        self.over.wait(60 if method in self.frozen else self.delay_s)
        return super().handle(method, request, *more)

    def copies_rows(self, method: str, request: bytes) -> bool:
        return False  # streams may wait

    def stream(self, method: str, request: bytes, *more: Any) -> Iterator[bytes]:
        self.over.wait(60 if method in self.frozen else self.delay_s)
        yield from super().stream(method, request, *more)


@pytest.fixture
def slow(node, tmp_path) -> Iterator[tuple[Slow, str]]:
    memory = SharedMemory(str(tmp_path))
    services = Slow({"train": node}, slots=memory)
    server = MixServer(services, "127.0.0.1:0", memory)
    server.start()
    yield services, server.address
    services.over.set()
    server.stop(grace_s=5)


@pytest.mark.parametrize("shared_memory", [False, True])
def test_the_steps_of_a_call_share_its_time(slow, tmp_path, shared_memory):
    services, address = slow
    services.delay_s = SLOW_S
    names = ["end", "get_batch_at, large", "get_batch_at, short", "get_plan_at", "session"]
    names += ["next", "schedule_weights", "start_prefetch"]
    folder = str(tmp_path) if shared_memory else False
    assert_in_time(calls_of(lambda: MixClient.connect(address, shared_memory=folder), names))


def test_looking_for_shared_memory_takes_part_of_the_time(slow, tmp_path):
    services, address = slow
    services.frozen = frozenset({methods.GET_SERVER, methods.STREAM_BATCHES})
    with MixClient.connect(address, shared_memory=str(tmp_path)) as client:
        client.mixture()
        assert_in_time({"get_batch_at": lambda: CLIENT["get_batch_at, large"](client)})


def test_a_server_that_answers_is_asked_for_the_batch_though_it_hides_its_shared_memory(slow, tmp_path):
    services, address = slow
    services.frozen = frozenset({methods.GET_SERVER})
    with MixClient.connect(address, shared_memory=str(tmp_path)) as client:
        client.mixture()
        found = client.get_batch_at(0, 1000, KEY, timeout_s=4 * TIMEOUT_S)["x"]  # a part is for the batch
        assert found.shape == (1000, 512)


def test_the_calls_of_a_session_end_in_time_also_those_that_wait_for_their_turn(slow):
    services, address = slow
    with MixClient.connect(address, shared_memory=False) as client:
        session, view = client.session("a", timeout_s=TIMEOUT_S), client.view_session("a", timeout_s=TIMEOUT_S)
        services.frozen = frozenset({methods.CALL_SESSION, methods.RELEASE_SESSIONS})
        calls: dict[str, Callable[[], Any]] = {
            "iter": lambda: iter(session),
            "next": lambda: next(session),
            "next_batch": lambda: session.next_batch(2),
            "get_state": session.get_state,
            "get_state of the view": view.get_state,
            "process": lambda: session.process(0, 4, KEY),
        }
        assert_in_time(calls)
        assert how_it_ended(session.close) == "None"


def test_a_session_whose_opening_took_too_long_is_let_go_in_the_background(slow):
    services, address = slow
    with MixClient.connect(address, shared_memory=False) as client, MixClient.connect(address) as other:
        client.mixture()
        services.frozen = frozenset({methods.OPEN_SESSION})
        assert_in_time({"session": lambda: client.session("a", timeout_s=TIMEOUT_S)})
        services.frozen = frozenset()
        services.over.set()  # only now can the call end
        with client.session("a"):
            pass
        with other.session("a"):
            pass
