"""The asyncio client: equal to the blocking one, many calls at a time, and cancelled calls lose nothing."""

import asyncio
import gc
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from mixserve import MixDataSourcesNode, MixServer, local_client
from mixserve.servicer import Services
from mixserve_client import (
    AsyncBatchIterator,
    AsyncMixClient,
    AsyncSession,
    AsyncSessionView,
    BatchIterator,
    FingerprintMismatch,
    InvalidRequest,
    MixClient,
    OutOfRange,
    Session,
    SessionTaken,
    SessionView,
    Unavailable,
    UnknownCheckpoint,
    UnknownMixture,
)
from mixserve_client.aio import client as aio_client
from mixserve_client.aio import turns
from mixserve_client.transport.in_process import InProcessTransport
from tests.conftest import assert_batches_equal, make_node

DEADLINE_S = 60


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, DEADLINE_S))


async def collected(records: Any) -> list[Any]:
    return [record async for record in records]


def assert_all_equal(left: list[Any], right: list[Any]) -> None:
    for a, b in zip(left, right, strict=True):
        assert_batches_equal(a, b)


class Gated(Services):
    """Services that hold requests while their gate is shut."""

    def __init__(self, nodes: dict[str, MixDataSourcesNode]):
        super().__init__(nodes)
        self.open, self.held = threading.Event(), threading.Semaphore(0)
        self.open.set()
        self.streams = 0

    def handle(self, method: str, request: bytes, *more: Any) -> bytes:
        self._pass()
        return super().handle(method, request, *more)

    def copies_rows(self, method: str, request: bytes) -> bool:
        return False  # streams may wait

    def stream(self, method: str, request: bytes, *more: Any) -> Iterator[bytes]:
        self.streams += 1
        self._pass()
        yield from super().stream(method, request, *more)

    async def holds_one(self) -> None:
        assert await asyncio.to_thread(self.held.acquire, timeout=DEADLINE_S)

    def _pass(self) -> None:
        if not self.open.is_set():
            self.held.release()
            assert self.open.wait(DEADLINE_S)


@pytest.fixture(params=["in-process", "grpc"])
def gated(request, node) -> Iterator[tuple[Gated, AsyncMixClient]]:
    services = Gated({"train": node})
    if request.param == "in-process":
        client = AsyncMixClient(MixClient([InProcessTransport(services)]))
        yield services, client
        asyncio.run(client.close())
    else:
        server = MixServer(services, "127.0.0.1:0")
        server.start()
        client = AsyncMixClient.connect(server.address, patience_s=20)
        yield services, client
        asyncio.run(client.close())
        server.stop()


@pytest.fixture
def expected(node) -> Iterator[Callable[[int], dict[str, np.ndarray]]]:
    """The batches of 8 rows of the key 7, by number."""
    with local_client({"train": node}) as client:
        yield lambda place: client.get_batch_at(8 * place, 8, 7)


@pytest.fixture
def gate(gated) -> Gated:
    return gated[0]


@pytest.fixture
def gated_client(gated) -> AsyncMixClient:
    return gated[1]


async def cancel_sent(gate: Gated, call: Coroutine[Any, Any, Any]) -> None:
    """Cancel `call` after its request has been sent. The gate stays shut afterwards."""
    gate.open.clear()
    task = asyncio.ensure_future(call)
    await gate.holds_one()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def again(gate: Gated, turns: Any, call: Coroutine[Any, Any, Any], late: bool) -> Any:
    """The result of `call`, made while the cancelled call runs, or after it."""
    if late:
        gate.open.set()
        await asyncio.to_thread(turns._running.exception, DEADLINE_S)
    task = asyncio.ensure_future(call)
    await asyncio.sleep(0)  # lets the task begin
    gate.open.set()
    return await task


both = pytest.mark.parametrize("late", [False, True], ids=["while it runs", "when it is over"])


# Equal to the blocking client


@pytest.fixture
def connect(request, client, node) -> Callable[[], AsyncMixClient]:
    """Makes asyncio clients over the transport of `client`; each call makes a new one."""
    if client.transport == "in-process":
        return lambda: AsyncMixClient(local_client({"train": node}))
    address = request.getfixturevalue("server").address
    shared_memory = request.node.callspec.params["client"] == "shared memory"
    return lambda: AsyncMixClient.connect(address, patience_s=20, shared_memory=shared_memory)


ASKED = [
    ((0, 8, 7), {}),
    ((2**62, 33, np.array([1, 2], np.uint32)), {"provenance": True}),
    ((5, 40, 3), {"schedule": [(20, (0, 0, 1))], "provenance": True}),
    ((0, 70_000, 1), {"mixture": "train"}),
]


@pytest.mark.parametrize(("place", "options"), ASKED)
def test_batches_and_plans_are_those_of_the_other_client(client, connect, place, options):
    async def scenario() -> None:
        async with connect() as asynchronous:
            batch = await asynchronous.get_batch_at(*place, **options, timeout_s=DEADLINE_S)
            assert_batches_equal(batch, client.get_batch_at(*place, **options))
            options.pop("provenance", None)
            plan = await asynchronous.get_plan_at(*place, **options)
            assert_batches_equal(plan, client.get_plan_at(*place, **options))

    run(scenario())


def test_descriptions_are_those_of_the_other_client(client, connect):
    async def scenario() -> None:
        async with connect() as asynchronous:
            assert await asynchronous.mixtures() == ("train",)
            assert await asynchronous.mixture() == await asynchronous.mixture("train") == client.mixture()
            assert await asynchronous.end() is None
            assert await asynchronous.sessions() == ()
            assert asynchronous.transport.split()[0] == client.transport.split()[0]
            assert repr(asynchronous) == f"AsyncMixClient({asynchronous.transport!r})"

    run(scenario())


def test_where_a_mixture_ends(node):
    ending = make_node(sampling="epoch", stop="first_exhausted", block_size=8)
    client = local_client({"train": ending})
    end = client.end()
    assert end is not None

    async def scenario() -> None:
        async with AsyncMixClient(client) as asynchronous:
            assert await asynchronous.end() == end
            assert await asynchronous.end(schedule=[(8, (1, 0, 0))]) == client.end(schedule=[(8, (1, 0, 0))])
            batch = await asynchronous.get_batch_at(end - 3, 9, 1, allow_short=True)
            assert_batches_equal(batch, client.get_batch_at(end - 3, 3, 1))
            assert len((await asynchronous.get_plan_at(end - 3, 9, 1, allow_short=True))["source_id"]) == 3
            with pytest.raises(OutOfRange):
                await asynchronous.get_batch_at(end - 3, 9, 1)
            assert_all_equal(await collected(asynchronous.batches(4, 1)), list(client.batches(4, 1)))

    run(scenario())


ITERATED = [
    {"stop": 100},
    {"stop": 100, "prefetch": 0, "start": 3},
    {"stop": 90, "shard": (1, 3), "provenance": True},
    {"stop": 200, "skip": [(10, 45), (90, 91)], "schedule": [(64, (1, 0, 0))]},
    {"start": 5, "stop": 5},
]


@pytest.mark.parametrize("options", ITERATED, ids=str)
def test_iterators_are_those_of_the_other_client(client, connect, options):
    async def scenario() -> None:
        async with connect() as asynchronous, asynchronous.batches(16, 5, **options) as batches:
            assert repr(batches).startswith("AsyncBatchIterator(mixture=")
            assert_all_equal(await collected(batches), list(client.batches(16, 5, **options)))
            for _ in range(2):
                with pytest.raises(StopAsyncIteration):
                    await anext(batches)

    run(scenario())


def test_states_are_those_of_the_other_client_and_interchange(client, connect):
    async def scenario() -> None:
        async with connect() as asynchronous:
            one, other = asynchronous.batches(16, 5, start=100), client.batches(16, 5, start=100)
            for batches in (one, other):
                start = batches.schedule_weights({"source-0": 1, "source-1": 0, "source-2": 2}, 140)
                assert (await start if batches is one else start) == 140
            await one.skip(170, 180)
            other.skip(170, 180)
            for _ in range(3):
                assert_batches_equal(await anext(one), next(other))
            state = await one.get_state()
            assert state == other.get_state()
            assert state["position"] == 148
            rest = [next(other) for _ in range(4)]
            there, back = client.batches(16, 0), asynchronous.batches(16, 0, prefetch=4)
            there.set_state(state)
            await back.set_state(there.get_state())
            assert_all_equal([next(there) for _ in rest], rest)
            assert_all_equal([await anext(back) for _ in rest], rest)
            with pytest.raises(InvalidRequest, match="exactly"):
                await back.set_state({})
            assert await back.get_state() == there.get_state()

    run(scenario())


def test_a_state_is_loaded_before_orbax_awaits_what_is_left(connect, tmp_path):
    async def scenario() -> None:
        async with connect() as asynchronous:
            one, other = asynchronous.batches(16, 5), asynchronous.batches(16, 0)
            await anext(one)
            await (await one.save(tmp_path))
            await (await other.load(tmp_path))
            assert await other.get_state() == await one.get_state()
            state = tmp_path / "mixserve_state.json"
            state.write_text(state.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
            with pytest.raises(FingerprintMismatch, match="its batches are different"):
                await other.load(tmp_path)  # Orbax hides the errors of what it awaits after this
            assert await other.get_state() == await one.get_state()

    run(scenario())


def test_hundreds_of_calls_at_a_time(client, connect):
    async def scenario() -> None:
        async with connect() as asynchronous:
            batches = await asyncio.gather(*(asynchronous.get_batch_at(i, 1 + i % 50, i) for i in range(400)))
            for i in range(0, 400, 23):
                assert_batches_equal(batches[i], client.get_batch_at(i, 1 + i % 50, i))
            assert [len(batch["id"]) for batch in batches] == [1 + i % 50 for i in range(400)]

    run(scenario())


def test_iterators_side_by_side_do_not_mix(client, connect):
    async def scenario() -> None:
        async with connect() as asynchronous:
            several = await asyncio.gather(*(collected(asynchronous.batches(7, i, stop=60)) for i in range(20)))
        for i, batches in enumerate(several):
            assert_all_equal(batches, list(client.batches(7, i, stop=60)))

    run(scenario())


def test_errors_are_those_of_the_other_client(connect):
    async def scenario() -> None:
        async with connect() as asynchronous:
            with pytest.raises(InvalidRequest, match="size must be at least 1, got 0"):
                await asynchronous.get_batch_at(0, 0, 7)
            with pytest.raises(UnknownMixture, match="trian"):
                await asynchronous.mixture("trian")
            with pytest.raises(InvalidRequest, match="prefetch"):
                asynchronous.batches(8, 0, prefetch=-1)
            with pytest.raises(InvalidRequest, match="the name of a session"):
                await asynchronous.session("../x")
            session = await asynchronous.session("mine")
            with pytest.raises(SessionTaken):
                await asynchronous.session("mine")
            await session.close()

    run(scenario())


def test_sessions_are_those_of_the_other_client(tmp_path, node):
    synchronous = local_client({"train": node})
    session = synchronous.session("run")
    epoch = list(session)

    async def scenario() -> None:
        async with AsyncMixClient(local_client({"train": node}, state_dir=tmp_path)) as client:
            async with await client.session("run") as one:
                assert (one.name, one.mixture, one.resumed, one.index, one.epoch) == ("run", "train", False, 0, 0)
                assert repr(one) == "AsyncSession('run', mixture='train')"
                records = one.__aiter__()
                assert one.epoch == 0
                assert_all_equal([await anext(records) for _ in range(3)], epoch[:3])
                assert_batches_equal(await one.next_record(), epoch[3])
                assert (one.index, one.epoch) == (4, 1)
                assert_all_equal(await collected(one), epoch)
                assert (one.index, one.epoch) == (len(epoch), 2)
                for call in (one.next_record, lambda: one.next_batch(4)):
                    with pytest.raises(StopAsyncIteration):
                        await call()
                iter(session)
                await one.start_epoch()
                assert_batches_equal(await one.next_batch(9), session.next_batch(9))
                saved = await one.save_checkpoint("here", keep_last=3)
                after = await one.next_batch(9)
                await one.restore_checkpoint("here")
                assert_batches_equal(await one.next_batch(9), after)
                view = await client.view_session("run")
                assert (view.name, view.mixture, repr(view)) == (
                    "run",
                    "train",
                    "AsyncSessionView('run', mixture='train')",
                )
                assert (await view.get_state())["index"] == one.index == 18
                assert await view.get_statistics() is None
                assert await view.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
                assert await view.list_checkpoints() == (saved,)
                assert await view.delete_checkpoint("here") == saved
                with pytest.raises(UnknownCheckpoint):
                    await one.delete_checkpoint("here")
                with pytest.raises(UnknownCheckpoint):
                    await one.restore_checkpoint("here")
            assert [(described.name, described.holder) for described in await client.sessions()] == [("run", "")]
            async with await client.session("run") as again:
                assert (again.resumed, again.index, again.epoch) == (True, 18, 3)

    run(scenario())
    synchronous.close()


# Cancellation


@both
@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_batch_whose_call_was_cancelled_comes_next(gate, gated_client, expected, late, prefetch):
    async def scenario() -> None:
        await gated_client.mixture()
        batches = gated_client.batches(8, 7, prefetch=prefetch)
        await cancel_sent(gate, anext(batches))
        assert_batches_equal(await again(gate, batches._turns, anext(batches), late), expected(0))
        if prefetch == 0:
            assert gate.streams == 1  # the cancelled stream continued
        assert_all_equal([await anext(batches) for _ in range(5)], [expected(i) for i in range(1, 6)])

    run(scenario())


def test_a_call_may_be_cancelled_many_times(gate, gated_client, expected):
    async def scenario() -> None:
        batches = gated_client.batches(8, 7)
        await cancel_sent(gate, anext(batches))
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(batches), 0.001)
        gate.open.set()
        assert_batches_equal(await anext(batches), expected(0))
        assert_batches_equal(await anext(batches), expected(1))

    run(scenario())


def test_the_next_in_line_gets_the_batch_of_a_cancelled_call(gate, gated_client, expected):
    async def scenario() -> None:
        batches = gated_client.batches(8, 7)
        gate.open.clear()
        waiting = [asyncio.ensure_future(anext(batches)) for _ in range(6)]
        await gate.holds_one()
        for place in (0, 1, 4):
            waiting[place].cancel()
        gate.open.set()
        got = await asyncio.gather(*waiting, return_exceptions=True)
        assert [place for place in range(6) if isinstance(got[place], asyncio.CancelledError)] == [0, 1, 4]
        assert_all_equal([got[place] for place in (2, 3, 5)], [expected(i) for i in range(3)])

    run(scenario())


@both
def test_the_state_is_that_before_a_batch_that_nobody_got(gate, gated_client, expected, late):
    async def scenario() -> None:
        await gated_client.mixture()
        batches = gated_client.batches(8, 7, prefetch=0)
        await anext(batches)
        await cancel_sent(gate, anext(batches))
        state = await again(gate, batches._turns, batches.get_state(), late)
        assert state["position"] == 8
        assert_batches_equal(await anext(batches), expected(1))
        await cancel_sent(gate, anext(batches))
        assert await again(gate, batches._turns, batches.schedule_weights((1, 0, 0)), late) == 16
        assert (await batches.get_state())["position"] == 16
        await batches.set_state(state)
        assert_all_equal([await anext(batches) for _ in range(3)], [expected(i) for i in range(1, 4)])

    run(scenario())


@both
def test_the_state_of_a_worker_is_that_before_a_batch_that_nobody_got(gate, gated_client, expected, late):
    async def scenario() -> None:
        await gated_client.mixture()
        batches = gated_client.batches(8, 7, worker=(1, 2), prefetch=0)
        assert_batches_equal(await anext(batches), expected(1))
        state = await batches.get_state()
        await cancel_sent(gate, anext(batches))
        assert await again(gate, batches._turns, batches.get_state(), late) == state
        other = gated_client.batches(8, 7, worker=(1, 2))
        await other.set_state(state)
        assert_batches_equal(await anext(other), expected(3))
        assert_batches_equal(await anext(batches), expected(3))

    run(scenario())


@both
def test_records_whose_call_was_cancelled_come_next(gate, gated_client, node, late):
    with local_client({"train": node}) as other:
        whole = other.session("other").next_batch(20)

    def rows(start: int, stop: int) -> dict[str, Any]:
        return {name: array[start:stop] for name, array in whole.items()}

    async def scenario() -> None:
        async with await gated_client.session("run") as session:
            await cancel_sent(gate, session.next_batch(4))
            assert_batches_equal(await again(gate, session.turns, session.next_batch(4), late), rows(0, 4))
            await cancel_sent(gate, session.next_record())
            record = await again(gate, session.turns, session.next_record(), late)
            assert_batches_equal(record, {name: array[4] for name, array in whole.items()})
            # A repeatable operation does not drop the records.
            await cancel_sent(gate, session.next_batch(4))
            assert (await again(gate, session.turns, session.get_state(), late))["index"] == session.index == 9
            await cancel_sent(gate, session.get_state())
            gate.open.set()
            assert_batches_equal(await session.next_batch(4), rows(5, 9))
            # The next read continues after them.
            await cancel_sent(gate, session.next_batch(4))
            assert_batches_equal(await again(gate, session.turns, session.next_batch(3), late), rows(13, 16))
            assert session.index == 16

    run(scenario())


@both
def test_what_was_done_once_is_not_done_twice(gate, gated_client, expected, late):
    async def scenario() -> None:
        async with await gated_client.session("run") as session:
            await cancel_sent(gate, session.process(8, 8, jax.random.key(7)))
            batch = await again(gate, session.turns, session.process(8, 8, jax.random.key(7)), late)
            assert_batches_equal(batch, expected(1))
            await cancel_sent(gate, session.process(8, 0))
            with pytest.raises(InvalidRequest):
                await again(gate, session.turns, session.process(8, 0), late)
            assert await session.get_operation_stats() == {"applied_count": 1, "skipped_count": 1}
            await session.next_batch(3)
            records = aiter(session)
            await cancel_sent(gate, anext(records))
            await again(gate, session.turns, anext(records), late)
            assert (session.index, session.epoch) == (1, 1)
            await cancel_sent(gate, session.set_statistics({"mean": 1}))
            await again(gate, session.turns, session.set_statistics({"mean": 2}), late)
            assert await session.get_statistics() == {"mean": 2}

    run(scenario())


@both
def test_a_session_whose_opening_was_cancelled_is_given_by_the_same_call(gate, gated_client, late):
    async def held() -> dict[str, bool]:
        return {described.name: bool(described.holder) for described in await gated_client.sessions()}

    async def scenario() -> None:
        await gated_client.mixture()
        await cancel_sent(gate, gated_client.session("a"))
        session = await again(gate, gated_client._opening, gated_client.session("a"), late)
        await session.next_batch(3)
        assert await held() == {"a": True}
        await cancel_sent(gate, gated_client.session("b"))
        other = await again(gate, gated_client._opening, gated_client.session("c"), late)
        assert await held() == {"a": True, "b": False, "c": True}
        await session.close()
        await other.close()

    run(scenario())


def test_a_call_that_has_not_begun_is_not_made(gate, gated_client, expected):
    async def scenario() -> None:
        await gated_client.mixture()
        session = await gated_client.session("run")
        first = await session.next_batch(3)
        await session.reset()
        await cancel_sent(gate, session.next_batch(3))
        gate.open.set()
        await asyncio.to_thread(session.turns._running.exception, DEADLINE_S)
        batches = gated_client.batches(8, 7, prefetch=0)
        gate.open.clear()
        busy = [asyncio.ensure_future(gated_client.get_batch_at(0, 8, 7)) for _ in range(aio_client._THREADS)]
        await gate.holds_one()
        for call in (anext(batches), session.reset(), gated_client.session("other"), gated_client.mixtures()):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call, 0.01)
        gate.open.set()
        assert_all_equal(await asyncio.gather(*busy), [expected(0)] * len(busy))
        assert_batches_equal(await session.next_batch(3), first)  # kept, although the operation was not done
        assert_batches_equal(await anext(batches), expected(0))
        assert [described.name for described in await gated_client.sessions()] == ["run"]
        await session.close()

    run(scenario())


# The end


def test_closing_a_client_ends_its_calls():
    async def scenario() -> None:
        lost = AsyncMixClient.connect("127.0.0.1:1", patience_s=600)
        waiting = [asyncio.ensure_future(lost.mixtures()) for _ in range(2 * aio_client._THREADS)]
        waiting.append(asyncio.ensure_future(anext(lost.batches(8, 0))))
        await asyncio.sleep(0)
        await asyncio.gather(lost.close(), lost.close())
        for call in waiting:
            with pytest.raises(Unavailable):
                await call

    run(scenario())


def test_what_is_asked_of_a_closed_client_is_answered_as_by_the_other_one(connect):
    async def scenario() -> None:
        client = connect()
        batches, session = client.batches(8, 0), await client.session("run")
        await anext(batches)
        await client.close()
        await client.close()
        assert (await batches.get_state())["position"] == 8
        for call in (client.mixtures, lambda: client.get_batch_at(0, 1, 0), lambda: session.next_batch(1)):
            with pytest.raises(Unavailable, match="closed"):
                await call()
        await session.close()
        await batches.close()
        with pytest.raises(InvalidRequest, match="closed"):
            await anext(batches)

    run(scenario())


def test_closed_iterators_and_sessions_say_so(client, connect):
    async def scenario() -> None:
        async with connect() as asynchronous:
            batches = asynchronous.batches(8, 0)
            await anext(batches)
            await batches.close()
            await batches.close()
            with pytest.raises(InvalidRequest, match="closed"):
                await anext(batches)
            assert (await batches.get_state())["position"] == 8
            session = await asynchronous.session("run")
            await session.close()
            await session.close()
            with pytest.raises(InvalidRequest, match="closed"):
                await session.next_batch(1)

    run(scenario())


def test_closing_an_iterator_ends_its_wait(gate, gated_client):
    async def scenario() -> None:
        await gated_client.mixture()
        batches = gated_client.batches(8, 7)
        await cancel_sent(gate, anext(batches))
        gate.open.set()
        await batches.close()
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="closed"):
                await anext(batches)

    run(scenario())


def test_closing_an_iterator_ends_its_search_for_a_server(client, monkeypatch):
    monkeypatch.setattr(turns, "_CLOSE_S", 2 * DEADLINE_S)
    described = client.mixture()

    async def scenario() -> None:
        async with AsyncMixClient.connect("127.0.0.1:1", patience_s=600) as lost:
            lost.client.catalog._known[""] = described
            batches = lost.batches(8, 7)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(batches), 0.1)
            await batches.close()
            with pytest.raises(InvalidRequest, match="closed"):
                await anext(batches)

    run(scenario())


def test_leaving_does_not_wait_for_a_server_that_is_away(monkeypatch):
    monkeypatch.setattr(turns, "_CLOSE_S", 0.1)

    async def scenario() -> None:
        async with AsyncMixClient.connect("127.0.0.1:1", patience_s=600) as lost, lost.batches(8, 7) as batches:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(batches), 0.1)
        with pytest.raises(InvalidRequest, match="closed"):
            await anext(batches)

    run(scenario())


def test_leaving_a_session_in_the_midst_of_a_call_lets_go_of_it(gate, gated_client, monkeypatch):
    async def scenario() -> None:
        async with await gated_client.session("run") as session:
            await session.next_batch(3)
            await cancel_sent(gate, session.next_batch(3))
            gate.open.set()
        async with await gated_client.session("run") as session:
            assert (session.resumed, session.index) == (True, 6)
            monkeypatch.setattr(turns, "_CLOSE_S", 0.01)
            await cancel_sent(gate, session.next_batch(3))
            running = session.turns._running
        gate.open.set()
        await asyncio.to_thread(running.exception, DEADLINE_S)
        await asyncio.to_thread(session.session.close)  # waits for the other call
        async with await gated_client.session("run") as session:
            assert (session.resumed, session.index) == (True, 9)

    run(scenario())


def test_one_event_loop_after_another(client, connect):
    asynchronous = connect()
    batches = asynchronous.batches(8, 7)
    for i in range(3):
        assert_batches_equal(run(anext(batches)), client.get_batch_at(8 * i, 8, 7))
    run(asynchronous.close())


def test_dropped_clients_leave_no_threads(node):
    def fetchers() -> int:
        return sum(thread.name == "mixserve-fetch" for thread in threading.enumerate())

    async def scenario() -> None:
        await anext(AsyncMixClient(local_client({"train": node})).batches(8, 0))

    before = fetchers()
    for _ in range(5):
        run(scenario())
    gc.collect()
    deadline = time.monotonic() + DEADLINE_S
    while fetchers() > before:
        assert time.monotonic() < deadline, fetchers()
        time.sleep(0.01)


def test_a_program_may_end_while_it_waits_for_a_server():
    program = (
        "import asyncio\nfrom mixserve_client import AsyncMixClient\n"
        "client = AsyncMixClient.connect('127.0.0.1:1')\n"
        "async def main():\n"
        "    try: await asyncio.wait_for(client.mixtures(), 0.2)\n"
        "    except TimeoutError: print('late')\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "late\n", "")


# The surface

PAIRS = [
    (MixClient, AsyncMixClient),
    (BatchIterator, AsyncBatchIterator),
    (SessionView, AsyncSessionView),
    (Session, AsyncSession),
]
AWAITED = {
    "__iter__": "__aiter__",
    "__next__": "__anext__",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
    (Session, "__next__"): "next_record",
}
AT_ONCE = {"connect", "batches", "stats"}  # they send no request
SPECIAL = ("__iter__", "__next__", "__enter__", "__exit__")


@pytest.mark.parametrize(("synchronous", "asynchronous"), PAIRS)
def test_every_member_of_the_other_client_is_here(synchronous, asynchronous):
    for name in dir(synchronous):
        if name.startswith("_") and name not in SPECIAL:
            continue
        here = AWAITED.get((synchronous, name), AWAITED.get(name, name))
        member, counterpart = (inspect.getattr_static(*of) for of in ((synchronous, name), (asynchronous, here)))
        if isinstance(member, property):
            assert isinstance(counterpart, property), name
        elif name in SPECIAL:
            assert callable(counterpart), name
        else:
            assert inspect.iscoroutinefunction(counterpart) == (name not in AT_ONCE), name
            signatures = [inspect.signature(getattr(kind, name)) for kind in (synchronous, asynchronous)]
            assert signatures[0].parameters == signatures[1].parameters, name
