"""Threads that answer calls, for gRPC."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from mixserve_client.errors import Unavailable
from mixserve_client.rpc.threads import DaemonThreadPool


class CallThreads(ThreadPoolExecutor):
    """Up to `count` daemon threads, each started when a call finds none that is idle.

    It is a ThreadPoolExecutor, since gRPC takes nothing else, but not one whose threads the interpreter waits for at
    its end: a stream that a client holds open would keep a process that did not stop its server from ending.

    Once the interpreter ends, a pool raises, and gRPC's own thread would die of it. What comes so late is not answered.
    """

    def __init__(self, count: int, name: str):
        super().__init__(count, name)
        self._workers = DaemonThreadPool(count, on_exit=_nothing, name=name)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As in the base."""
        try:
            return self._workers.submit(partial(fn, *args, **kwargs))
        except Unavailable:
            late: Future[Any] = Future()
            late.cancel()
            return late

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Let the threads end after the calls that they have; nothing is waited for."""
        self._workers.close()


def _nothing() -> None:
    pass
