"""The calls on one object: one at a time, each in a thread, and none is lost when its caller is cancelled."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from mixserve_client.errors import Unavailable
from mixserve_client.forks import PerProcess, leave_to_parent, renew_in_forks
from mixserve_client.rpc.threads import DaemonThreadPool

T = TypeVar("T")
_CLOSE_S = 2.0
END: Any = object()  # in the place of StopIteration, which no future can hold


class Turns:
    """The calls on one object: one at a time, each in a thread. One whose caller was cancelled runs on."""

    def __init__(self, workers: PerProcess[DaemonThreadPool]):
        self._workers = workers
        self._lock = asyncio.Lock()
        self._running: Future[Any] | None = None  # for nobody
        self._kept: tuple[tuple[Any, ...], Future[Any]] | None = None  # the answer that nobody took, and to what
        renew_in_forks(self, Turns.renew_after_fork)

    def renew_after_fork(self) -> None:
        """No call runs in this process."""
        leave_to_parent((self._running, self._kept))
        self._lock, self._running, self._kept = asyncio.Lock(), None, None

    async def again(self, task: Callable[[], T]) -> T:
        """What `task` gives, which may be run twice where a caller was cancelled."""
        async with self._lock:
            await self._quiet()
            return await self._answer(begin(task, self._workers))

    async def once(self, task: Callable[[], T], *name: Any) -> T:
        """What `task` gives, or what it gave to a caller of the same name who was cancelled.

        That answer is kept until another task is to be run once.
        """
        async with self._lock:
            await self._quiet()
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
        """Run `task` when no call runs any more, and wait for that: but not long for one that runs for nobody."""
        async with self._lock:
            self._kept = None
            with suppress(TimeoutError):
                await asyncio.wait_for(self._quiet(), _CLOSE_S)
            if self._running is None:
                await self._answer(begin(task, self._workers))
            else:
                last: Future[None] = Future()
                last.set_running_or_notify_cancel()
                self._running.add_done_callback(lambda _: _finish(last, task))
                self._running = last

    async def _quiet(self) -> None:
        if self._running is not None:
            with suppress(Exception):  # which is for the caller who went away
                await asyncio.wrap_future(self._running)
            self._running = None

    async def _answer(self, future: "Future[T]") -> T:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel():  # it has begun
                self._running = future
            raise


def begin(task: Callable[[], T], workers: PerProcess[DaemonThreadPool]) -> "Future[T]":
    """`task` in a thread, or here once the client is closed: nothing waits any more then, and states can be had."""
    try:
        return workers.here.submit(task)
    except Unavailable:
        future: Future[T] = Future()
        _finish(future, task)
        return future


def _finish(future: "Future[T]", task: Callable[[], T]) -> None:
    try:
        future.set_result(task())
    except Exception as error:
        future.set_exception(error)
