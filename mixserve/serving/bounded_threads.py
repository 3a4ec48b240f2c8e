"""Threads for the calls of which one connection may have only so many at a time."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from mixserve.access.call import error_fields
from mixserve.serving.threads import CountingThreads
from mixserve_client.errors import Overloaded
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

_REFUSING = 2
_RETRY_S = 1.0


class BoundedThreads(CountingThreads):
    """As `CountingThreads`; a call beyond `most_of_one` of its connection is refused, in threads of their own."""

    def __init__(self, count: int, name: str, most_of_one: int, most_blocked: int = 0):
        super().__init__(count, name, most_blocked)
        self.refused = LimitedLog(_logger, "streams_per_connection")
        self._most_of_one = most_of_one
        self._of_one: dict[str, int] = {}
        self._refusing = CountingThreads(_REFUSING, f"{name}-refused")
        self._refused = threading.local()

    def submit_for(self, peer: str, run: Callable[[], Any]) -> "Future[Any]":
        with self._lock:
            count = self._of_one.get(peer, 0)
            if is_allowed := not peer or count < self._most_of_one:
                self._of_one[peer] = count + 1
        if is_allowed:
            return super().submit_for(peer, partial(self._count_down, peer, run))
        return self._refusing.submit_for(peer, partial(self._refuse, run))

    def check(self, peer: str) -> None:
        """Raises Overloaded in the thread of a call that is refused; call it first."""
        if getattr(self._refused, "is_set", False):
            raise self._refusal(peer)

    def start_missing(self) -> None:
        super().start_missing()
        self._refusing.start_missing()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._refusing.shutdown(wait, cancel_futures=cancel_futures)

    def _count_down(self, peer: str, run: Callable[[], Any]) -> Any:
        try:
            return run()
        finally:
            with self._lock:
                count = self._of_one[peer] - 1
                if count:
                    self._of_one[peer] = count
                else:
                    del self._of_one[peer]

    def _refuse(self, run: Callable[[], Any]) -> Any:
        self._refused.is_set = True
        try:
            return run()
        finally:
            self._refused.is_set = False

    def _refusal(self, peer: str) -> Overloaded:
        """The error of a call that is refused, after a line in the log."""
        words = f"this connection has {self._most_of_one} streams already, as many as it may; ask again"
        error = Overloaded(words, _RETRY_S)
        self.refused.warn(
            "%s has %d streams that run or wait, and may have no more: close iterators that are not used, or raise "
            "streams_per_connection in server.limits",
            peer,
            self._most_of_one,
            extra=error_fields(error),
        )
        return error
