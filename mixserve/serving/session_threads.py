"""The threads of a server's sessions: a few for calls, however many sessions there are, and one that ends leases."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping

import grpc

from mixserve.serving.first_request import REQUEST_TIMEOUT_S, FirstRequests
from mixserve.serving.threads import CountingThreads
from mixserve_client.limited_log import LimitedLog
from mixserve_client.wire import methods

_logger = logging.getLogger("mixserve")

_OTHERS = 2  # threads
_LOOK_EVERY_S = 10.0
_PATIENCE_S = 2.0  # states may have 16 MiB

_NAMES = {
    methods.CALL_SESSION: "mixserve-session",
    methods.OPEN_SESSION: "mixserve-opening",
    methods.LIST_SESSIONS: "mixserve-listing",
}


class SessionThreads:
    """Answers calls, openings, listings and all else, each in their own threads. Calls `regularly` every 10 s."""

    def __init__(
        self,
        counts: Mapping[str, int],
        *regularly: Callable[[], None],
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ):
        """`counts` are the numbers of threads of calls, openings and listings, by their methods."""
        # Pure calls and renewals of leases must not wait for sources and disks, so each kind has its own threads.
        self._threads = {method: CountingThreads(count, _NAMES[method]) for method, count in counts.items()}
        self._other_threads = CountingThreads(_OTHERS, "mixserve-lease")
        self._first = {
            method: FirstRequests(threads, _PATIENCE_S, request_timeout_s) for method, threads in self._threads.items()
        }
        self._other_first = FirstRequests(self._other_threads, _PATIENCE_S, request_timeout_s)
        self.visits = [threads.visit for threads in (*self._threads.values(), self._other_threads)]
        self._regularly = regularly
        self._failures = LimitedLog(_logger)
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="mixserve-leases", daemon=True)

    def start(self) -> None:
        """Start to end leases."""
        self._watching.start()

    def handler(self, method: str, answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> grpc.RpcMethodHandler:
        """A gRPC handler that runs `answer` in the threads of its kind."""

        first = self._first.get(method, self._other_first)

        def call(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            return answer(first.take_one(requests, context), context)

        # gRPC's (experimental) way to give a method its own threads; `answer` may be a partial that several share.
        threads = self._threads.get(method, self._other_threads)
        call.experimental_thread_pool = threads  # pyright: ignore[reportFunctionMemberAccess]
        return grpc.stream_unary_rpc_method_handler(call)

    def waiting(self, method: str) -> int:
        """How many calls of the kind of `method` have no thread."""
        return self._threads.get(method, self._other_threads).waiting

    @property
    def firsts(self) -> list[FirstRequests]:
        """What waits for the requests of each kind."""
        return [*self._first.values(), self._other_first]

    def end_late(self) -> None:
        """End the calls whose requests do not come; call it once a second."""
        for first in self.firsts:
            first.end_late()

    def close(self) -> None:
        """End the threads after the calls that they have."""
        self._closed.set()
        for threads in (*self._threads.values(), self._other_threads):
            threads.shutdown(wait=False)
        if self._watching.is_alive():
            self._watching.join()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            for call in self._regularly:
                try:
                    call()
                except BaseException:  # this thread must live: without it no session would ever leave memory
                    self._failures.exception(
                        "cannot end the leases of silent sessions; trying again in %.0f s", _LOOK_EVERY_S
                    )
