"""Threads that answer calls, for gRPC."""

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


def _nothing() -> None:
    pass
