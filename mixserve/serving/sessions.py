"""What a server's sessions need of threads: few that answer their calls, however many they are, and one that looks
after their leases."""

import logging
import threading
from collections.abc import Callable

import grpc

from mixserve.serving.threads import CallThreads

_logger = logging.getLogger("mixserve")

# Apart from those of pure calls, which must not wait for disks and slow sources.
_THREADS = 16
_LEASE_THREADS = 2
_LOOK_EVERY_S = 10.0


class SessionThreads:
    """Answers calls in threads of their own, those about leases in others; calls `end_silent` every now and then."""

    def __init__(self, end_silent: Callable[[], None]):
        self._threads = CallThreads(_THREADS, "mixserve-session")
        self._lease_threads = CallThreads(_LEASE_THREADS, "mixserve-lease")
        self._end_silent = end_silent
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="mixserve-leases", daemon=True)

    def start(self) -> None:
        """Look after leases."""
        self._watching.start()

    def handler(self, answer: Callable[[bytes, grpc.ServicerContext], bytes], *, waits: bool) -> grpc.RpcMethodHandler:
        """The handler of a method that `answer` answers, and in which it may wait for a session and its sources."""

        def call(request: bytes, context: grpc.ServicerContext) -> bytes:
            return answer(request, context)

        # How grpc lets a method have its own threads.
        call.experimental_thread_pool = self._threads if waits else self._lease_threads  # pyright: ignore[reportFunctionMemberAccess]
        return grpc.unary_unary_rpc_method_handler(call)

    def close(self) -> None:
        """Let the threads end after what they do now."""
        self._closed.set()
        self._threads.shutdown(wait=False)
        self._lease_threads.shutdown(wait=False)
        if self._watching.is_alive():
            self._watching.join()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            try:
                self._end_silent()
            except Exception:
                _logger.exception("leases of sessions cannot be looked after")
