"""Requests move over a gRPC channel; every status becomes one of our errors here and nowhere else."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

import grpc

from mixserve_client.allocator import keep_freed_memory
from mixserve_client.errors import InvalidRequest, MixserveError, Unavailable
from mixserve_client.transport import Interrupted
from mixserve_client.transport.forking import GATE
from mixserve_client.wire.error import ERROR_METADATUM, error_of
from mixserve_client.wire.reply import LARGEST_REPLY_BYTES

_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:", "xds:")
_ADDRESS_SCHEMES = ("dns:", "ipv4:", "ipv6:")

# A reply may hold one row of the largest size; the size of all others is checked where they are read. The pings find a
# peer that is gone or frozen without a word, so that no call waits for it forever.
_OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST_REPLY_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # also how long a connection may take to come about
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),  # data servers are near; a proxy for the web would stand in the way
]


class GrpcTransport:
    """One server by its gRPC target (`host:port`, `dns:///name:port`, `unix:///path`); connects at the first call."""

    def __init__(self, target: str):
        _check_target(target)
        self._target = target
        self._channel: grpc.Channel | None = None
        self._methods: dict[str, Callable[..., Any]] = {}
        self._lock = threading.RLock()  # a client may be collected, and closed, wherever this thread is
        self._closed = False

    @property
    def name(self) -> str:
        return f"grpc {self._target}"

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        with GATE.passed(), self._errors():
            return self._method(method, "unary_unary")(request, timeout=timeout_s)

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,  # noqa: ARG002
        reply_bytes: int,  # noqa: ARG002
    ) -> "_Replies":
        with GATE.passed(), self._errors():
            return _Replies(self._method(method, "unary_stream")(request, timeout=timeout_s), self._errors)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()

    def _method(self, method: str, kind: str) -> Callable[..., Any]:
        with self._lock:
            if self._closed:
                raise Unavailable(f"the client of {self._target} is closed; connect again")
            if self._channel is None:
                keep_freed_memory()
                self._channel = grpc.insecure_channel(self._target, options=_OPTIONS)
            if method not in self._methods:
                self._methods[method] = getattr(self._channel, kind)(method)
            return self._methods[method]

    @contextmanager
    def _errors(self) -> Generator[None]:
        """Turns what gRPC raises into our errors."""
        try:
            yield
        except grpc.RpcError as error:
            # A stream is its own error, so its traceback is a circle that leads to the frames of all callers: what they
            # hold, batches in shared memory too, would wait for the collector of circles.
            raise self._ours(error) from error.with_traceback(None)
        except ValueError as error:  # grpc's word for a channel that was closed meanwhile
            if self._closed:
                raise Unavailable(f"the client of {self._target} is closed; connect again") from error
            raise

    def _ours(self, error: grpc.RpcError) -> MixserveError:
        assert isinstance(error, grpc.Call)
        metadata = tuple(cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ()))
        code, details = error.code().name, error.details() or ""
        if ERROR_METADATUM not in dict(metadata):
            details = f"{self._target}: {details}"
            # A connection that dies under a call, and a server that ends it to stop, may show as CANCELLED.
            code = "UNAVAILABLE" if code == "CANCELLED" else code
        return error_of(code, details, metadata)


def _check_target(target: Any) -> None:
    """Raises InvalidRequest for what gRPC would look for in vain, or at a port that nobody named."""
    if isinstance(target, str) and target == target.strip() and _has_good_ports(target):
        return
    raise InvalidRequest(
        f"a server's address must be host:port with a port in 1..65535, dns:///name:port or unix:///path, an IPv6 host "
        f"in brackets as in [::1]:50051, and several servers a list of such; got {target!r:.100}"
    )


def _has_good_ports(target: str) -> bool:
    if target.startswith(_ADDRESS_SCHEMES):  # where gRPC takes a port modulo 65536, and knows some by name
        addresses = target.partition(":")[2].rpartition("/")[2].split(",")
        ports = [address.rpartition(":")[2] for address in addresses]
        return target.isprintable() and all(_is_port(port) or not port.isdecimal() for port in ports)
    if target.startswith(_SCHEMES):
        return True
    host, _, port = target.rpartition(":")
    is_host = host.isprintable() and not set(host) & set("/, ") and (":" not in host or host[0] + host[-1] == "[]")
    return bool(host) and is_host and _is_port(port)


def _is_port(port: str) -> bool:
    return port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 1 << 16


class _Replies:
    def __init__(self, call: Any, errors: Callable[[], AbstractContextManager[None]]):
        self._call = call
        self._errors = errors
        self._interrupted = False
        number = GATE.add(self)
        if not call.add_callback(partial(GATE.remove, number)):
            GATE.remove(number)

    def __iter__(self) -> Iterator[bytes]:
        try:
            with self._errors():
                yield from self._call
        except Unavailable as error:
            if self._interrupted:
                raise Interrupted("this process was forked meanwhile") from error
            raise

    def interrupt(self) -> None:
        self._interrupted = True
        self._call.cancel()

    def cancel(self) -> None:
        self._call.cancel()
