"""What the sessions of each mixture may do at a time, and the threads in which their calls run.

A call of a session may hang in a source, as a read does. So it runs in a thread apart from the one that answers it,
which waits until a deadline, or until the client is gone. The call goes on, and its session stays busy; a client that
sends it again waits for the same run of it.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from mixserve.servicer.jobs import Jobs, Running, Words
from mixserve.servicer.thread_share import ThreadShare
from mixserve_client.errors import Unavailable
from mixserve_client.wire.session import FEW_BYTES

T = TypeVar("T")

ALL = ""  # in place of a mixture, for the list of all sessions

WORDS = Words(
    late="the mixture %r: %s; the call is answered with Unavailable, and goes on. %d of up to %d threads for sessions "
    "of this mixture hang so: look at what its sources read from, and at the state folder",
    ended="a call on a session of the mixture %r that was given up after %g s has ended after %.0f s",
    full="all %d threads for sessions of the mixture %r run calls",
    full_kind="session_threads",
)


@dataclass(frozen=True, slots=True)
class SessionCall(Generic[T]):
    """A call on a session, as a job. `key` is the same for a client that sends it again; empty if it may run twice."""

    what: str  # for errors
    is_read: bool
    run: Callable[[], T]
    key: bytes = b""

    def late(self, said: str) -> Exception:
        """As `Job.late`."""
        return Unavailable(f"{self.what} {said}, and goes on; the same call, sent again, waits for it")


class SessionWork(Protocol):
    """Where calls on sessions run."""

    def working(self, method: str, mixture: str) -> AbstractContextManager[None]:
        """A context in which the thread answers a call of `method` for a mixture; it may wait on entering.

        Raises Overloaded if the mixture has its share, and Abandoned.
        """
        ...

    def run(self, mixture: str, call: SessionCall[T]) -> T:
        """The result of `call`. Raises what it raises; Unavailable if it is late; Overloaded if no thread is free; and
        Abandoned."""
        ...


class InCaller:
    """Runs calls in the threads of their callers, without limits."""

    def working(self, method: str, mixture: str) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def run(self, mixture: str, call: SessionCall[T]) -> T:  # noqa: ARG002
        return call.run()


class SharedOut:
    """Shares out the threads of a server among its mixtures. Thread-safe."""

    def __init__(self, shares: Mapping[str, ThreadShare], jobs: Mapping[str, Jobs]):
        """`shares` by methods, and `jobs` by mixtures."""
        self.shares, self.jobs = dict(shares), dict(jobs)
        self._left: dict[bytes, _Left] = {}  # by their keys
        self._lock = threading.Lock()

    def working(self, method: str, mixture: str) -> AbstractContextManager[None]:
        return self.shares[method].work(mixture)

    def run(self, mixture: str, call: SessionCall[T]) -> T:
        jobs = self.jobs[mixture]
        with self._lock:
            left = self._left.pop(call.key, None)
        if left is None:
            left = self._begin(jobs, call)
        try:
            return jobs.wait(left.running, time.monotonic())
        finally:
            with self._lock:
                if call.key and not left.has_ended.is_set():
                    self._left[call.key] = left

    def _begin(self, jobs: Jobs, call: SessionCall[T]) -> "_Left":
        context, run, has_ended = copy_context(), call.run, threading.Event()  # the caller's context, for the audit

        def run_and_forget() -> T:
            try:
                return context.run(run)
            finally:
                # What nobody waits for is not kept: the session makes its answer again.
                with self._lock:
                    has_ended.set()
                    self._left.pop(call.key, None)

        return _Left(jobs.begin(replace(call, run=run_and_forget)), has_ended)


class _Left(NamedTuple):
    """A call that goes on without anybody who waits for it."""

    running: Running[Any]
    has_ended: threading.Event


def key_of(request: bytes, *, is_numbered: bool) -> bytes:
    """The key of a call with that request, if its session runs it once however often it comes."""
    return request if is_numbered and len(request) <= FEW_BYTES else b""
