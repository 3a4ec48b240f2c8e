"""Runs the calls on one object in threads, one at a time, and keeps the answer of a call whose caller is cancelled."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from mixserve_client import tracing
from mixserve_client.errors import Unavailable
from mixserve_client.forks import PerProcess, leave_to_parent, renew_in_forks
from mixserve_client.rpc.threads import DaemonThreadPool

T = TypeVar("T")
_CLOSE_S = 2.0  # how long `at_last` waits for a call whose caller was cancelled
END: Any = object()  # in place of StopIteration, which a future cannot hold


class Turns:
    """The turns of the calls on one object: one at a time, each in a thread. A call whose caller is cancelled runs on.

    For one event loop.
    """

    def __init__(self, workers: PerProcess[DaemonThreadPool]):
        self._workers = workers
        self._lock = asyncio.Lock()
        self._running: Future[Any] | None = None  # a call that runs on, since a thread cannot be cancelled
        self._kept: tuple[tuple[Any, ...], Future[Any]] | None = None  # name and answer of a cancelled `once`
        renew_in_forks(self, Turns.renew_after_fork)

    def renew_after_fork(self) -> None:
        """Forget the calls that run in the parent; none runs in this process."""
        leave_to_parent((self._running, self._kept))
        self._lock, self._running, self._kept = asyncio.Lock(), None, None

    async def again(self, task: Callable[[], T]) -> T:
        """Run `task`, and return its result. Drops the result if the caller is cancelled."""
        async with self._lock:
            await self._wait_for_running()
            return await self._answer(begin(task, self._workers))

    async def once(self, task: Callable[[], T], *name: Any) -> T:
        """Run `task`, and return its result. If an earlier call of the same name was cancelled, return its result.

        A cancelled call's result is kept until the next call of `once`, whatever its name.
        """
        async with self._lock:
            await self._wait_for_running()
            kept, self._kept = self._kept, None
            if kept is not None and kept[0] == name:
                return kept[1].result()
            future = begin(task, self._workers)
            try:
                return await self._answer(future)
            except asyncio.CancelledError:
                self._kept = kept if future.cancelled() else (name, future)
                raise

    async def at_last(self, task: Callable[[], None]) -> None:
        """Run `task` when no call runs any more. Waits up to 2 s for a call whose caller was cancelled; then returns,
        and `task` runs at the end of that call."""
        async with self._lock:
            self._kept = None
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wait_for_running(), _CLOSE_S)
            if self._running is None:
                await self._answer(begin(task, self._workers))
            else:
                # Marked as running, so that a caller who is cancelled while it waits for this cannot cancel it.
                last: Future[None] = Future()
                last.set_running_or_notify_cancel()
                self._running.add_done_callback(lambda _: _finish(last, task))
                self._running = last

    async def _wait_for_running(self) -> None:
        if self._running is not None:
            with suppress(Exception):  # an error of the cancelled call, whose caller is gone
                await asyncio.wrap_future(self._running)
            self._running = None

    async def _answer(self, future: "Future[T]") -> T:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel():  # a thread has begun it, and cannot be interrupted
                self._running = future
            raise


def begin(task: Callable[[], T], workers: PerProcess[DaemonThreadPool]) -> "Future[T]":
    """Run `task` in a thread, or here if the client is closed: then no call waits for a server, and `get_state` still
    works."""
    if tracing.spans is not None:
        task = tracing.spans.carried(task)
    try:
        return workers.here.submit(task)
    except Unavailable:
        future: Future[T] = Future()
        _finish(future, task)
        return future


def _finish(future: "Future[T]", task: Callable[[], T]) -> None:
    try:
        future.set_result(task())
    except BaseException as error:  # else a caller would wait for the future for ever
        future.set_exception(error)
