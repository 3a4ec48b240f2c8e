"""The one request of a call, without letting calls that never send theirs keep threads."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

import grpc

from mixserve.serving.threads import CountingThreads
from mixserve_client.limited_log import LimitedLog

T = TypeVar("T")

_logger = logging.getLogger("mixserve")

REQUEST_TIMEOUT_S = 10.0
# A request is on its way with the call, in the same packets mostly. But it may have come, and wait for this machine's
# processors: so long is for everybody.
_PATIENCE_S = 0.1
_LEAST_S = 0.05


class FirstRequests:
    """Waits for requests in the threads of `threads`; ends calls that have waited `patience_s` if others need a thread.

    gRPC gives each call a thread, which then waits for the request. A client that opens as many calls as there are
    threads, and sends nothing, would block all others for as long as it likes. Of a connection with several such calls,
    each gets so many times less, and `least_s` at least. Without others, `end_late` ends calls after `timeout_s`.
    """

    def __init__(
        self,
        threads: CountingThreads,
        patience_s: float = _PATIENCE_S,
        timeout_s: float = REQUEST_TIMEOUT_S,
        least_s: float = _LEAST_S,
    ):
        self.ended = LimitedLog(_logger, "request_timeout_s")
        self._threads = threads
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._least_s = least_s
        self._lock = threading.Lock()
        self._silent: dict[grpc.ServicerContext, float] = {}  # since when a call has sent no request; the oldest first
        self._ending: set[grpc.ServicerContext] = set()  # cancelled; their threads will be free in a moment
        self._timer: threading.Timer | None = None
        threads.on_submit = self._make_room

    def take(self, requests: Iterator[T], context: grpc.ServicerContext) -> T | None:
        """The request, None if the client ended the call without one. Raises grpc.RpcError if the call was ended."""
        with self._lock:
            self._silent[context] = time.monotonic()
        try:
            self._make_room()  # a call may have come between the start of this thread and the line above
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

    def end_late(self) -> None:
        """End the calls whose requests have not come within `timeout_s`; call it once a second.

        Starts the threads that are missing, too.
        """
        self._threads.start_missing()
        self._make_room()
        before = time.monotonic() - self._timeout_s
        with self._lock:
            late = [(context, context.peer()) for context, since in self._silent.items() if since <= before]
            for context, _ in late:
                self._end(context)
        for _, peer in late:
            self.ended.warn(
                "%s began a call and did not send its request within %g s: ended it. If its network is that slow, "
                "raise request_timeout_s in server.limits",
                peer,
                self._timeout_s,
            )

    def silent_since(self, before: float) -> list[grpc.ServicerContext]:
        """The calls that have sent no request since that time of `time.monotonic()`; the oldest first."""
        with self._lock:
            return [context for context, since in self._silent.items() if since <= before]

    def end(self, context: grpc.ServicerContext) -> bool:
        """End a call, unless its request has come."""
        with self._lock:
            is_silent = context in self._silent
            if is_silent:
                self._end(context)
        return is_silent

    def _make_room(self) -> None:
        if not self._silent or not self._threads.waiting:  # mostly so; looked at again under the lock
            return
        with self._lock:
            count = self._threads.waiting - len(self._ending)
            if count <= 0 or not self._silent:
                return
            peers = [context.peer() for context in self._silent]  # once: a connection that ends may lose its name
            of_one = Counter(peers)
            until = sorted(
                (since + self._patience_of(of_one[peer]), at, context)
                for at, (peer, (context, since)) in enumerate(zip(peers, self._silent.items(), strict=True))
            )
            now = time.monotonic()
            for end, _, context in until[:count]:
                if end > now:
                    self._look_again_in(end - now)
                    return
                self._end(context)

    def _patience_of(self, silent: int) -> float:
        """Seconds for each of so many calls of a connection."""
        return max(self._least_s, self._patience_s / silent)

    def _end(self, context: grpc.ServicerContext) -> None:
        del self._silent[context]
        self._ending.add(context)
        context.cancel()

    def _look_again_in(self, seconds: float) -> None:
        if self._timer is None:
            timer = threading.Timer(seconds, self._look)
            timer.daemon = True
            with suppress(RuntimeError):  # the system has no thread left: the next call looks, or `end_late`
                timer.start()
                self._timer = timer

    def _look(self) -> None:
        with self._lock:
            self._timer = None
        self._make_room()
