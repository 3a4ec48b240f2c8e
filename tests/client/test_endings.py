"""Cancelled, closed and unused calls leave nothing: no thread, no stream, no memory."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mixserve import local_client
from mixserve.servicer import Services
from mixserve_client import AsyncMixClient, BatchIterator, MixClient
from mixserve_client.errors import Unavailable
from mixserve_client.reading.batches import Batches
from mixserve_client.rpc import tries
from mixserve_client.rpc.asking import Request
from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.transport.base import Lane, ReadMode
from mixserve_client.transport.in_process import InProcessTransport
from mixserve_client.wire import methods
from tests.waiting import wait_until

DEADLINE_S = 20


class Away:
    """A transport whose server is away."""

    name = "away"

    def __init__(self) -> None:
        self.asked = threading.Event()

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        self.asked.set()
        raise Unavailable("away")

    def read_mode(self, method: str, request: bytes) -> ReadMode:
        return ReadMode.BACKGROUND

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,
        reply_bytes: int,
        lane: Lane | None = None,
    ) -> Any:
        return iter([self.call(method, request, timeout_s)])

    def close(self) -> None:
        pass


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_a_stream_that_is_ended_does_not_sleep_out_its_delay(monkeypatch, how):
    monkeypatch.setattr(tries, "_LONGEST_DELAY_S", 60.0)
    away = Away()
    caller = RetryingCaller([away], 600)
    caller._replicas.first_delay_s = 60.0
    replies = caller.stream(methods.STREAM_BATCHES, lambda: Request(b"", 1, 1), bytes)
    ended = list[object]()

    def read() -> None:
        try:
            ended.append(list(replies))
        except Unavailable as error:
            ended.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert away.asked.wait(DEADLINE_S)
    end = replies.cancel if how == "cancelled" else caller.close
    end()
    thread.join(5)
    assert ended


def fetchers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "mixserve-fetch"}


def test_threads_are_started_as_they_are_needed(node):
    async def scenario() -> list[int]:
        async with AsyncMixClient(local_client({"train": node})) as client:
            before, found = fetchers(), list[int]()
            for _ in range(5):
                await client.mixtures()
            found.append(len(fetchers() - before))
            await anext(client.batches(8, 7, stop=8))
            found.append(len(fetchers() - before))
            return found

    one_call, with_an_iterator = asyncio.run(scenario())
    assert one_call == 1
    assert with_an_iterator <= 3


def test_no_more_threads_than_are_allowed(node):
    class Waiting(Services):
        here, go_on = threading.Semaphore(0), threading.Event()

        def handle(self, method: str, request: bytes, *more: Any) -> bytes:
            self.here.release()
            assert self.go_on.wait(DEADLINE_S)
            return super().handle(method, request, *more)

    async def scenario() -> int:
        services, before = Waiting({"train": node}), fetchers()
        async with AsyncMixClient(MixClient([InProcessTransport(services)])) as client:
            calls = [asyncio.ensure_future(client.mixtures()) for _ in range(40)]
            for _ in range(16):
                assert await asyncio.to_thread(services.here.acquire, timeout=DEADLINE_S)
            most = len(fetchers() - before)
            services.go_on.set()
            assert await asyncio.gather(*calls) == [("train",)] * 40
            return most

    assert asyncio.run(scenario()) == 16


class Counting(Services):
    """Services that count their open streams."""

    open = 0

    def stream(self, method: str, request: bytes, *more: Any) -> Iterator[bytes]:
        self.open += 1
        try:
            yield from super().stream(method, request, *more)
        finally:
            self.open -= 1


def test_closing_an_asyncio_iterator_while_it_asks_for_more_leaves_nothing_running(node, monkeypatch):
    """A cancelled `anext` left a thread that is about to request more when `close` stops waiting for it."""
    services = Counting({"train": node})
    ask, asking, go_on = Batches.refill, threading.Event(), threading.Event()

    def slow(self: BatchIterator, *arguments: Any, **options: Any) -> None:
        asking.set()
        assert go_on.wait(DEADLINE_S)
        ask(self, *arguments, **options)

    async def scenario() -> None:
        client = AsyncMixClient(MixClient([InProcessTransport(services)]))
        batches = client.batches(8, 7, prefetch=2)
        await anext(batches)
        monkeypatch.setattr(Batches, "refill", slow)
        waiting = asyncio.ensure_future(_all(batches))
        await asyncio.to_thread(asking.wait, DEADLINE_S)
        waiting.cancel()
        await asyncio.wait([waiting])
        closing = asyncio.ensure_future(batches.close())
        await asyncio.sleep(0)
        closing.cancel()  # as a timeout around it does
        await asyncio.wait([closing])
        go_on.set()
        inner = batches._iterator.batches
        await asyncio.to_thread(wait_until, lambda: not services.open, "that no stream is open")
        await asyncio.to_thread(wait_until, lambda: inner._in_flight.count == 0, "that no batches are in flight")
        await client.close()

    asyncio.run(scenario())


async def _all(batches: Any) -> list[Any]:
    return [batch async for batch in batches]
