"""A servicer behind a gRPC port: starts, warms up, answers, drains."""

import errno
import logging
import socket
import threading
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc

from mixserve.node import MixDataSourcesNode
from mixserve.servicer import MixServicer
from mixserve.serving.calls import CallCounter
from mixserve.serving.health import SERVICE_NAME as HEALTH_SERVICE_NAME
from mixserve.serving.health import Health
from mixserve.serving.reflection import add_reflection
from mixserve.serving.shared_memory import SharedMemory, open_shared_memory
from mixserve.serving.streams import StreamThreads
from mixserve_client.allocator import keep_freed_memory
from mixserve_client.errors import MixserveError, Unavailable
from mixserve_client.transport.grpc import ERROR_METADATUM
from mixserve_client.wire import methods

_logger = logging.getLogger("mixserve")

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server beside the first
    ("grpc.max_receive_message_length", 1 << 20),  # requests are small; a large one is an attack or an accident
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # clients look after their connections
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]
_THREADS = 16
_SEND_S = 2.0


class MixServer:
    """A running server; `address` is where it listens. Made by `serve`; a context manager that stops it."""

    def __init__(self, servicer: MixServicer, address: str, memory: SharedMemory | None = None):
        """`memory` is what the servicer's slots are; it is closed with the server."""
        keep_freed_memory()
        self._servicer = servicer
        self._memory = memory
        self._calls = CallCounter()
        self._not_ready: str | None = "is starting: it compiles programs and reads its sources"
        self._streams = StreamThreads()
        self._server = grpc.server(ThreadPoolExecutor(_THREADS, "mixserve-call"), options=_OPTIONS)
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self._health = Health(self._server)
        add_reflection(self._server, (methods.SERVICE_NAME, HEALTH_SERVICE_NAME))
        self.address = _bind(self._server, address)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Listen, warm up, and then serve; calls that come before get Unavailable, and clients try again."""
        self._server.start()
        self._servicer.warm_up()
        self._not_ready = None
        self._health.serving()
        _logger.info("serving on %s", self.address)

    def stop(self, grace_s: float = 30.0) -> bool:
        """Drain, then end: health goes NOT_SERVING and new calls get Unavailable at once, running ones have
        `grace_s` seconds to finish. False if some were still running then: their threads live on."""
        self._not_ready = "is stopping; ask another replica, or wait for its successor"
        self._health.stopping()
        finished = self._calls.wait_for_none(grace_s)
        # The last replies are on their way still; health watchers would stay for as long as they may.
        self._server.stop(grace=min(grace_s, _SEND_S)).wait()
        self._health.close()
        self._streams.close()
        if self._memory is not None:
            self._memory.close()
        self._stopped.set()
        return finished

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the server has stopped; False if it has not after `timeout_s`."""
        return self._stopped.wait(timeout_s)

    def __enter__(self) -> "MixServer":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _handlers(self) -> grpc.GenericRpcHandler:
        calls = (
            methods.LIST_MIXTURES,
            methods.GET_MIXTURE,
            methods.GET_BATCH_AT,
            methods.DEFINE_SCHEDULE,
            methods.GET_SERVER,
        )
        handlers = {_name(path): grpc.unary_unary_rpc_method_handler(partial(self._answer, path)) for path in calls}
        answer = partial(self._stream, methods.STREAM_BATCHES)
        handlers[_name(methods.STREAM_BATCHES)] = self._streams.handler(answer)
        return grpc.method_handlers_generic_handler(methods.SERVICE_NAME, handlers)

    def _answer(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        with self._calls, _statuses(context):
            self._check_ready()
            return self._servicer.handle(method, request)

    def _stream(self, method: str, request: bytes, context: grpc.ServicerContext) -> Generator[bytes]:
        with self._calls, _statuses(context):
            self._check_ready()
            for reply in self._servicer.stream(method, request):
                yield reply
                if self._not_ready is not None:
                    return  # clients ask for the rest elsewhere

    def _check_ready(self) -> None:
        if self._not_ready is not None:
            raise Unavailable(f"this server {self._not_ready}")


@contextmanager
def _statuses(context: grpc.ServicerContext) -> Generator[None]:
    """Ends the call with the status of our error."""
    try:
        yield
    except MixserveError as error:
        context.set_trailing_metadata(((ERROR_METADATUM, type(error).__name__),))
        context.abort(getattr(grpc.StatusCode, error.code), str(error))


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def serve(
    nodes: Mapping[str, MixDataSourcesNode],
    address: str = "127.0.0.1:0",
    *,
    placement: str | None = None,
    shared_memory: bool | str = True,
) -> MixServer:
    """Host the nodes under their names at `address` (`host:port`, port 0 for a free one, or `unix:///path`).

    Returns when the server is warmed up and serving. `placement` (auto, host or device) overrides that of the nodes.
    Clients of the same user on this host get batches through shared memory: they find the server in the folder
    `shared_memory`, /dev/shm where it is True. Raises OSError where the address cannot be had.
    """
    memory = open_shared_memory(shared_memory)
    try:
        server = MixServer(MixServicer(nodes, placement=placement, slots=memory), address, memory)
    except BaseException:
        if memory is not None:
            memory.close()
        raise
    try:
        server.start()
    except BaseException:
        server.stop(grace_s=0)
        raise
    return server


def _bind(server: grpc.Server, address: str) -> str:
    if address.startswith("unix:"):
        _check_socket_is_free(address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise _bind_error(address) from error
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def _check_socket_is_free(address: str) -> None:
    """gRPC would take a socket away from a server that is listening on it. Raises OSError."""
    path = address.removeprefix("unix:").removeprefix("//")
    if not path.startswith("\0") and not Path(path).parent.is_dir():
        raise OSError(errno.ENOENT, f"cannot listen on {address}: there is no folder {Path(path).parent}")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {address}: another server does; choose another path")


def _bind_error(address: str) -> OSError:
    """What keeps us from listening there: gRPC does not say, the operating system does."""
    host, _, port = address.rpartition(":")
    hint = "choose another address, or port 0 for a free port"
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, sockaddr = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(sockaddr)
    except OSError as error:
        return OSError(error.errno, f"cannot listen on {address}: {error.strerror}; {hint}")
    except ValueError:
        pass
    return OSError(errno.EADDRNOTAVAIL, f"cannot listen on {address}: it must be host:port or unix:///path; {hint}")
