"""The one request of a call, without letting calls that never send theirs keep all threads."""

import threading
import time
from collections.abc import Iterator
from typing import TypeVar

import grpc

from mixserve.serving.threads import CountingThreads

T = TypeVar("T")

_PATIENCE_S = 0.02  # a request is on its way with the call, in the same packets mostly


class FirstRequests:
    """Waits for requests in the threads of `threads`; ends calls that have waited `patience_s` if others need a thread.

    gRPC gives each call a thread, which then waits for the request. A client that opens as many calls as there are
    threads, and sends nothing, would block all others for as long as it likes.
    """

    def __init__(self, threads: CountingThreads, patience_s: float = _PATIENCE_S):
        self._threads = threads
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._silent: dict[grpc.ServicerContext, float] = {}  # since when a call has sent no request; the oldest first
        self._ending: set[grpc.ServicerContext] = set()  # cancelled; their threads will be free in a moment
        self._timer: threading.Timer | None = None
        threads.on_submit = self._make_room

    def take(self, requests: Iterator[T], context: grpc.ServicerContext) -> T | None:
        """The request, None if the client ended the call without one. Raises grpc.RpcError if the call was ended."""
        with self._lock:
            self._silent[context] = time.monotonic()
        self._make_room()  # a call may have come between the start of this thread and the line above
        try:
            return next(requests, None)
        finally:
            with self._lock:
                self._silent.pop(context, None)
                self._ending.discard(context)

    def take_one(self, requests: Iterator[T], context: grpc.ServicerContext) -> T:
        """As `take`; a call without a request ends with INVALID_ARGUMENT."""
        request = self.take(requests, context)
        if request is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a request")
        return request

    def _make_room(self) -> None:
        with self._lock:
            while self._silent and self._threads.waiting > len(self._ending):
                oldest, since = next(iter(self._silent.items()))
                left_s = since + self._patience_s - time.monotonic()
                if left_s > 0:
                    self._look_again_in(left_s)
                    return
                del self._silent[oldest]
                self._ending.add(oldest)
                oldest.cancel()

    def _look_again_in(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = threading.Timer(seconds, self._look)
            self._timer.daemon = True
            self._timer.start()

    def _look(self) -> None:
        with self._lock:
            self._timer = None
        self._make_room()
