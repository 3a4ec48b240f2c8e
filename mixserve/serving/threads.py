"""Threads that answer calls, for gRPC."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class CallThreads(ThreadPoolExecutor):
    """Takes calls until the interpreter ends.

    From then on a pool raises, and gRPC's own thread would die of it: a process that did not stop its server would
    never end. What comes so late is not answered.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As in the base."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            late: Future[Any] = Future()
            late.cancel()
            return late
