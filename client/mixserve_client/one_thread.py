"""Objects for one thread at a time: a second one gets an error, instead of waiting for what the first one took."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from mixserve_client.errors import InvalidRequest

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="OneThreaded")


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
            if not turn.acquire(False):
                raise InvalidRequest(
                    "another thread is in a call of this iterator, which is for one thread at a time: make one for "
                    "each thread with client.batches(...), or hold a lock around its calls"
                )
            try:
                return method(self, *args, **kwargs)
            finally:
                turn.release()
                if self._closed:
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
