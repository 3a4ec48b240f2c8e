"""The threads of single calls: those that read sources, and those that describe and list."""

from collections.abc import Callable, Iterator

import grpc

from mixserve.serving.first_request import FirstRequests
from mixserve.serving.threads import CountingThreads
from mixserve_client.wire import methods

# Their answers are short and read no source: what lists and describes must not wait for calls that do.
_DESCRIPTIONS = frozenset(
    (methods.LIST_MIXTURES, methods.GET_MIXTURE, methods.GET_SOURCE, methods.GET_SERVER, methods.GET_STATS)
)
_DESCRIBING_THREADS = 4
_PATIENCE_S = 0.25  # a request comes in the same packets as its call, mostly

Answer = Callable[[bytes, grpc.ServicerContext], bytes]


class SingleCalls:
    """Answers single calls that need no session, each kind in its own threads; `threads` are those that read."""

    def __init__(self, count: int, request_timeout_s: float):
        """`count` is the number of `threads`."""
        self.threads = CountingThreads(count, "mixserve-call")
        self._describing = CountingThreads(_DESCRIBING_THREADS, "mixserve-describe")
        self._first = FirstRequests(self.threads, _PATIENCE_S, request_timeout_s)
        self._first_described = FirstRequests(self._describing, _PATIENCE_S, request_timeout_s)
        self.firsts = self._first, self._first_described
        self.visits = self.threads.visit, self._describing.visit

    def waiting(self, path: str) -> int:
        """How many calls wait for a thread of those that a call of `path` needs, if there can be many."""
        return 0 if path in _DESCRIPTIONS else self.threads.waiting

    def handler(self, path: str, answer: Answer) -> grpc.RpcMethodHandler:
        """A gRPC handler that runs `answer` in the threads of its kind."""
        first = self._first_described if path in _DESCRIPTIONS else self._first

        def call(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            return answer(first.take_one(requests, context), context)

        if path in _DESCRIPTIONS:  # gRPC's (experimental) way to give a method its own threads
            call.experimental_thread_pool = self._describing  # pyright: ignore[reportFunctionMemberAccess]
        # The same on the wire. As a method with one request, a call would hold its thread until that comes.
        return grpc.stream_unary_rpc_method_handler(call)

    def end_late(self) -> None:
        """End the calls whose requests do not come; call it once a second."""
        for first in self.firsts:
            first.end_late()

    def close(self) -> None:
        """End the threads after the calls that they have."""
        self.threads.shutdown()
        self._describing.shutdown()
