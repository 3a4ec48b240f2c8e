"""The standard gRPC health service, on the server's port and on one of its own."""

# Not grpc_health's servicer: it sends while it holds the lock that each answer needs, so that one client that reads
# nothing, or one that ends its watch while the server stops, would block all others for ever.
import threading
from collections.abc import Generator, Iterator

import grpc
from grpc_health.v1 import health, health_pb2

from mixserve.serving.first_request import FirstRequests
from mixserve.serving.threads import CountingThreads
from mixserve_client.wire import methods

SERVICE_NAME = health.SERVICE_NAME
_SERVICES = ("", methods.SERVICE_NAME)
_CHECKS, _WATCHES = 8, 64  # threads; a watch keeps its own as long as its client likes
_NO_REQUEST = "the call ended without a HealthCheckRequest"

Requests = Iterator[health_pb2.HealthCheckRequest]


class Health:
    """NOT_SERVING until `serving()` is called, and again after `stopping()`. Has its own threads on each port."""

    def __init__(self) -> None:
        self._status = _Status()
        self._threads: list[CountingThreads] = []

    def add_to(self, server: grpc.Server) -> None:
        """Answer on the ports of `server` as well, whatever its calls do."""
        # Room for a few more watches than are allowed, so that those too many are told.
        threads = CountingThreads(_CHECKS, "mixserve-health"), CountingThreads(_WATCHES + 4, "mixserve-watch")
        self._threads.extend(threads)
        # As streams of requests, which look the same on the wire: gRPC gives a call with one request to a thread and
        # waits there for the request, so as many calls that never send one would block all others.
        check = grpc.stream_unary_rpc_method_handler(
            _Check(self._status, threads[0]),
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        watch = grpc.stream_stream_rpc_method_handler(
            _Watch(self._status, threads[1]),
            health_pb2.HealthCheckRequest.FromString,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        handlers = {"Check": check, "Watch": watch}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    def serving(self) -> None:
        self._status.set(health_pb2.HealthCheckResponse.SERVING)

    def stopping(self) -> None:
        self._status.set(health_pb2.HealthCheckResponse.NOT_SERVING)

    def close(self) -> None:
        for threads in self._threads:
            threads.shutdown(wait=False)


class _Status:
    """The status of all services, and how long it stays so."""

    def __init__(self) -> None:
        self.now = health_pb2.HealthCheckResponse.NOT_SERVING
        self._changed = threading.Condition()

    def set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        with self._changed:
            self.now = status
            self._changed.notify_all()

    def wait(self, seen: health_pb2.HealthCheckResponse.ServingStatus, ended: threading.Event) -> None:
        """Wait until the status is not the one `seen`, or `end(ended)` is called."""
        with self._changed:
            self._changed.wait_for(lambda: self.now != seen or ended.is_set())

    def end(self, ended: threading.Event) -> None:
        """End the waits with `ended`."""
        ended.set()
        with self._changed:
            self._changed.notify_all()


class _Check:
    def __init__(self, status: _Status, threads: CountingThreads):
        self._status, self._first = status, FirstRequests(threads)
        self.experimental_thread_pool = threads  # gRPC's way to give a method its own threads

    def __call__(self, requests: Requests, context: grpc.ServicerContext) -> health_pb2.HealthCheckResponse:
        request = self._first.take(requests, context)
        if request is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, _NO_REQUEST)
        if request.service not in _SERVICES:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self._status.now)


class _Watch:
    def __init__(self, status: _Status, threads: CountingThreads):
        self._status, self._first = status, FirstRequests(threads)
        self._room = threading.BoundedSemaphore(_WATCHES)
        self.experimental_thread_pool = threads

    def __call__(self, requests: Requests, context: grpc.ServicerContext) -> Generator[health_pb2.HealthCheckResponse]:
        request = self._first.take(requests, context)
        if request is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, _NO_REQUEST)
        if not self._room.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_WATCHES} clients watch already; use Check")
        ended = threading.Event()

        def end() -> None:
            self._room.release()
            self._status.end(ended)

        if not context.add_callback(end):  # the call has ended meanwhile
            end()
        is_known = request.service in _SERVICES
        while not ended.is_set():
            status = self._status.now
            yield health_pb2.HealthCheckResponse(
                status=status if is_known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            )
            self._status.wait(status, ended)
