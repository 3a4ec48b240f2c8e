"""Threads that answer calls, for gRPC."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from mixserve_client.errors import Unavailable
from mixserve_client.rpc.threads import DaemonThreadPool


class CallThreads(ThreadPoolExecutor):
    """Up to `count` daemon threads, each started when a call finds none that is idle."""

    # A ThreadPoolExecutor by type only, because gRPC takes nothing else. The interpreter joins that class's threads
    # when it exits, so a stream that a client holds open would keep a process from ending.

    def __init__(self, count: int, name: str):
        super().__init__(count, name)
        self._workers = DaemonThreadPool(count, on_exit=_nothing, name=name)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As in the base class. While the interpreter exits, returns a cancelled future."""
        try:
            return self._workers.submit(partial(fn, *args, **kwargs))
        except Unavailable:  # raising would end gRPC's own thread
            late: Future[Any] = Future()
            late.cancel()
            return late

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """End the threads after the calls that they have. Never waits."""
        self._workers.close()


class CountingThreads(CallThreads):
    """Counts the tasks that wait because all threads are busy; calls `on_submit` after each new task."""

    def __init__(self, count: int, name: str):
        super().__init__(count, name)
        self._counting = threading.Lock()
        self._most = count
        self._in_flight = 0  # submitted, and not ended
        self.on_submit: Callable[[], None] = _nothing

    @property
    def waiting(self) -> int:
        """How many tasks have no thread."""
        # Not the length of the queue: a task that was just submitted waits there until an idle thread wakes up, and
        # would end a stream for nothing.
        return max(0, self._in_flight - self._most)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        self._count(1)
        future = super().submit(self._run, fn, *args, **kwargs)
        self.on_submit()
        return future

    def _run(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        finally:
            self._count(-1)

    def _count(self, by: int) -> None:
        with self._counting:
            self._in_flight += by


def _nothing() -> None:
    pass
