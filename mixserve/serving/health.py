"""The standard gRPC health service, on the server's port and on one of its own.

It knows these names:

- the service `mixserve.v1.MixService`: whether the server answers calls; it starts and drains otherwise;
- `mixture/NAME`, of each mixture: whether it also gets records from its sources;
- the empty name: whether that is so for at least one mixture.
"""

# Not grpc_health's servicer: it sends while it holds the lock that each answer needs, so that one client that reads
# nothing, or one that ends its watch while the server stops, would block all others for ever.
import logging
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping

import grpc
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2

from mixserve.serving.first_request import FirstRequests
from mixserve.serving.threads import CountingThreads
from mixserve_client.errors import InvalidRequest
from mixserve_client.limited_log import LimitedLog
from mixserve_client.wire import health, methods
from mixserve_client.wire.standard_request import decode_standard_request

_logger = logging.getLogger("mixserve")

SERVICE_NAME = grpc_health.SERVICE_NAME
_LOOK_EVERY_S = 0.5  # at mixtures whose health is watched
_CHECKS, _WATCHES = 32, 64  # threads; a watch keeps its own as long as its client likes
_PATIENCE_S, _LEAST_S = 0.5, 0.02  # a probe has one call at a time
_MOST_OF_ONE = 10  # watches of a connection: a client needs one
_NO_REQUEST = "the call ended without a HealthCheckRequest"

Requests = Iterator[bytes]


class Health:
    """NOT_SERVING until `serving()` is called, and again after `stopping()`. Has its own threads on each port."""

    def __init__(self, mixtures: Callable[[], Mapping[str, bool]]) -> None:
        """`mixtures` says of each mixture, by name, whether it gets records from its sources."""
        self._status = _Status(mixtures)
        self._threads: list[CountingThreads] = []
        self._first: list[FirstRequests] = []

    def add_to(self, server: grpc.Server) -> None:
        """Answer on the ports of `server` as well, whatever its calls do."""
        # Room for a few more watches than are allowed, so that those too many are told.
        threads = CountingThreads(_CHECKS, "mixserve-health"), CountingThreads(_WATCHES + 4, "mixserve-watch")
        self._threads.extend(threads)
        first = tuple(FirstRequests(one, _PATIENCE_S, least_s=_LEAST_S) for one in threads)
        self._first.extend(first)
        # As streams of requests, which look the same on the wire: gRPC gives a call with one request to a thread and
        # waits there for the request, so as many calls that never send one would block all others.
        check = grpc.stream_unary_rpc_method_handler(
            _Check(self._status, first[0], threads[0]),
            None,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        watch = grpc.stream_stream_rpc_method_handler(
            _Watch(self._status, first[1], threads[1]),
            None,
            health_pb2.HealthCheckResponse.SerializeToString,
        )
        handlers = {"Check": check, "Watch": watch}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    def serving(self) -> None:
        self._status.set(is_serving=True)

    def stopping(self) -> None:
        self._status.set(is_serving=False)

    def wait_for_told(self, timeout_s: float) -> None:
        """Wait until those who watch know the status of now, at most `timeout_s` seconds."""
        self._status.wait_for_told(timeout_s)

    @property
    def firsts(self) -> list[FirstRequests]:
        """What waits for the requests of each kind, on all ports."""
        return list(self._first)

    def end_late(self) -> None:
        """End the calls whose requests do not come; call it once a second."""
        for first in self._first:
            first.end_late()

    def close(self) -> None:
        for threads in self._threads:
            threads.shutdown(wait=False)


class _Status:
    """The status of all services, and how long it stays so."""

    def __init__(self, mixtures: Callable[[], Mapping[str, bool]]) -> None:
        self._mixtures = mixtures
        self._is_serving = False
        self._changed = threading.Condition()
        # What each watch has been told of its service; by the event that ends it.
        self._told: dict[threading.Event, tuple[str, health_pb2.HealthCheckResponse.ServingStatus]] = {}

    def set(self, *, is_serving: bool) -> None:
        with self._changed:
            self._is_serving = is_serving
            self._changed.notify_all()

    def of(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        """The status of a service now."""
        mixtures, (kind, _, name) = self._mixtures(), service.partition("/")
        if service == methods.SERVICE_NAME:
            answers = True
        elif not service:
            answers = any(mixtures.values()) or not mixtures
        elif kind == health.MIXTURE and name in mixtures:
            answers = mixtures[name]
        else:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._is_serving and answers:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    def wait(
        self, service: str, seen: health_pb2.HealthCheckResponse.ServingStatus, ended: threading.Event
    ) -> health_pb2.HealthCheckResponse.ServingStatus:
        """Wait until the status of a service is not the one `seen`, or `end(ended)` is called. Returns the status."""
        with self._changed:
            if not ended.is_set():
                self._told[ended] = service, seen  # gRPC asks for the next one when it has sent the last one
                self._changed.notify_all()
            while (status := self.of(service)) == seen and not ended.is_set():
                self._changed.wait(_LOOK_EVERY_S)  # mixtures do not tell when they change
            return status

    def end(self, ended: threading.Event) -> None:
        """End the waits with `ended`."""
        ended.set()
        with self._changed:
            self._told.pop(ended, None)
            self._changed.notify_all()

    def wait_for_told(self, timeout_s: float) -> None:
        """Wait until all watches have been told what is so now, at most `timeout_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: all(self.of(name) == seen for name, seen in self._told.values()), timeout_s)


class _Check:
    def __init__(self, status: _Status, first: FirstRequests, threads: CountingThreads):
        self._status, self._first = status, first
        self.experimental_thread_pool = threads  # gRPC's way to give a method its own threads

    def __call__(self, requests: Requests, context: grpc.ServicerContext) -> health_pb2.HealthCheckResponse:
        status = self._status.of(_service(self._first.take(requests, context), context))
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)


class _Watch:
    def __init__(self, status: _Status, first: FirstRequests, threads: CountingThreads):
        self._status, self._first = status, first
        self._room = _WatchRoom()
        self._refused = LimitedLog(_logger, "health_watches")
        self.experimental_thread_pool = threads

    def __call__(self, requests: Requests, context: grpc.ServicerContext) -> Generator[health_pb2.HealthCheckResponse]:
        service = _service(self._first.take(requests, context), context)
        peer = context.peer()
        if not self._room.take(peer):
            self._refused.warn(
                "%s may not watch health: %d watches of one connection, and %d of all, are allowed. Let it use Check, "
                "and look for clients that leave watches open",
                peer,
                _MOST_OF_ONE,
                _WATCHES,
            )
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_WATCHES} clients watch already; use Check")
        ended = threading.Event()

        def end() -> None:
            self._room.give_back(peer)
            self._status.end(ended)

        if not context.add_callback(end):  # the call has ended meanwhile
            end()
        status = self._status.of(service)
        while not ended.is_set():
            yield health_pb2.HealthCheckResponse(status=status)
            status = self._status.wait(service, status, ended)


def _service(request: bytes | None, context: grpc.ServicerContext) -> str:
    """The service whose health is asked for; ends the call if the request does not tell it."""
    if request is None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, _NO_REQUEST)
    try:
        # Strangers may ask, and a watch keeps the name of its service for as long as it lasts: so a name must be short.
        return decode_standard_request(health_pb2.HealthCheckRequest, request).service
    except InvalidRequest as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


class _WatchRoom:
    """How many watches there are, of each connection too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_one = Counter[str]()

    def take(self, peer: str) -> bool:
        """Count one more. False if there are too many."""
        with self._lock:
            if self._of_one[peer] >= _MOST_OF_ONE or self._of_one.total() >= _WATCHES:
                return False
            self._of_one[peer] += 1
            return True

    def give_back(self, peer: str) -> None:
        """Count one less."""
        with self._lock:
            self._of_one[peer] -= 1
            if not self._of_one[peer]:
                del self._of_one[peer]
