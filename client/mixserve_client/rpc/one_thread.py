"""A guard for objects that one thread at a time may use: a second thread gets an error and does not wait."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from mixserve_client.errors import InvalidRequest

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="OneThreaded")


def is_owned(lock: Any) -> bool:
    """Whether this thread holds the RLock."""
    # The only way to know; threading.Condition relies on it too.
    return lock._is_owned()


@contextmanager
def try_acquire(lock: Any, timeout_s: float) -> Generator[bool]:
    """Acquire the RLock within `timeout_s` seconds, yield whether that worked, and release it at the end."""
    # A signal handler may raise after the lock is acquired and before `taken` is set. So `taken` alone does not say
    # whether to release it: a lock that this thread holds now, and did not hold before, was acquired here.
    before = is_owned(lock)
    taken = False
    try:
        taken = lock.acquire(timeout=timeout_s)
        yield taken
    finally:
        if taken or (not before and is_owned(lock)):
            lock.release()


class OneThreaded:
    """Base of objects whose `_in_turn` methods run in one thread at a time; any thread may set `_closed`."""

    def __init__(self) -> None:
        # Reentrant, since a signal handler may save the state while the thread that it interrupts waits for a batch.
        self._turn = threading.RLock()
        self._closed = False

    @staticmethod
    def _in_turn(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
        """Make `method` raise InvalidRequest, without a wait, while another thread is in a call."""

        @wraps(method)
        def call(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
            turn = self._turn
            before, taken = is_owned(turn), False
            try:
                taken = turn.acquire(False)
                if not taken:
                    raise InvalidRequest(
                        "another thread is in a call of this iterator, which one thread at a time may use: make one "
                        "for each thread with client.batches(...), or hold a lock around its calls"
                    )
                return method(self, *args, **kwargs)
            finally:  # as in `try_acquire`, whose generator costs a microsecond more for each batch
                if taken or (not before and is_owned(turn)):
                    turn.release()
                if taken and self._closed:
                    self._settle()

        return call

    def _settle(self) -> None:
        """Drop what a closed object holds; if another thread is in a call, that call does it at its end."""
        if self._turn.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._turn.release()

    def _drop(self) -> None:
        raise NotImplementedError
