"""Objects for one thread at a time: a second one gets an error, instead of waiting for what the first one took."""

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
    """Whether this thread has the RLock."""
    return lock._is_owned()


@contextmanager
def owned(lock: Any, timeout_s: float) -> Generator[bool]:
    """Whether the RLock could be had in that time; it is released at the end, whenever a signal comes."""
    before = is_owned(lock)
    taken = False
    try:
        taken = lock.acquire(timeout=timeout_s)
        yield taken
    finally:
        if taken or (not before and is_owned(lock)):
            lock.release()


class OneThreaded:
    """Its calls, those that `_in_turn` decorates, come from one thread at a time; `_closed` may be set at any time."""

    def __init__(self) -> None:
        # Reentrant: a signal handler takes a state while the thread that it interrupts waits for a batch.
        self._turn = threading.RLock()
        self._closed = False

    @staticmethod
    def _in_turn(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
        """Raises InvalidRequest while another thread is in a call; never waits."""

        @wraps(method)
        def call(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
            turn = self._turn
            before, taken = is_owned(turn), False
            try:
                taken = turn.acquire(False)
                if not taken:
                    raise InvalidRequest(
                        "another thread is in a call of this iterator, which is for one thread at a time: make one for "
                        "each thread with client.batches(...), or hold a lock around its calls"
                    )
                return method(self, *args, **kwargs)
            finally:  # as in `owned`, which costs a microsecond more for each batch
                if taken or (not before and is_owned(turn)):
                    turn.release()
                if taken and self._closed:
                    self._settle()

        return call

    def _settle(self) -> None:
        """Drop what a closed one holds, unless another thread is in a call: that does it at its end."""
        if self._turn.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._turn.release()

    def _drop(self) -> None:
        raise NotImplementedError
