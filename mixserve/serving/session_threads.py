"""What a server's sessions need of threads: few that answer their calls, however many they are, and one that looks
after their leases."""

import logging
import threading
from collections.abc import Callable

import grpc

from mixserve.serving.threads import CallThreads
from mixserve_client.wire import methods

_logger = logging.getLogger("mixserve")

# Apart from those of pure calls, which must not wait for disks and slow sources: nor must leases that are renewed.
_CALLS, _OPENINGS, _LISTINGS, _OTHERS = 16, 4, 2, 2
_LOOK_EVERY_S = 10.0


class SessionThreads:
    """Answers calls, openings, listings and all else, each kind in threads of its own; calls `end_silent` at times."""

    def __init__(self, end_silent: Callable[[], None]):
        self._threads = {
            methods.CALL_SESSION: CallThreads(_CALLS, "mixserve-session"),
            methods.OPEN_SESSION: CallThreads(_OPENINGS, "mixserve-opening"),
            methods.LIST_SESSIONS: CallThreads(_LISTINGS, "mixserve-listing"),
        }
        self._other_threads = CallThreads(_OTHERS, "mixserve-lease")
        self._end_silent = end_silent
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="mixserve-leases", daemon=True)

    def start(self) -> None:
        """Look after leases."""
        self._watching.start()

    def handler(self, method: str, answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> grpc.RpcMethodHandler:
        """The handler of the method, which `answer` answers."""

        def call(request: bytes, context: grpc.ServicerContext) -> bytes:
            return answer(request, context)

        # How grpc lets a method have its own threads.
        threads = self._threads.get(method, self._other_threads)
        call.experimental_thread_pool = threads  # pyright: ignore[reportFunctionMemberAccess]
        return grpc.unary_unary_rpc_method_handler(call)

    def close(self) -> None:
        """Let the threads end after what they do now."""
        self._closed.set()
        for threads in (*self._threads.values(), self._other_threads):
            threads.shutdown(wait=False)
        if self._watching.is_alive():
            self._watching.join()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            try:
                self._end_silent()
            except Exception:
                _logger.exception("leases of sessions cannot be looked after")
