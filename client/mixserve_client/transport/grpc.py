"""Requests move over a gRPC channel; every status becomes one of our errors here and nowhere else."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

import grpc

from mixserve_client.errors import MixserveError, Unavailable
from mixserve_client.schema.addresses import check_address
from mixserve_client.transport.allocator import keep_freed_memory
from mixserve_client.transport.base import Interrupted
from mixserve_client.transport.forking import GATE
from mixserve_client.wire.error import ERROR_METADATUM, error_of


class GrpcTransport:
    """One server by its gRPC target (`host:port`, `dns:///name:port`, `unix:///path`); connects at the first call."""

    def __init__(self, target: str, open_channel: Callable[[str], grpc.Channel]):
        self._target = check_address(target)
        self._open_channel = open_channel
        self._channel: grpc.Channel | None = None
        self._methods: dict[str, Callable[..., Any]] = {}
        self._lock = threading.RLock()  # a client may be collected, and closed, wherever this thread is
        self._closed = False

    @property
    def name(self) -> str:
        return f"grpc {self._target}"

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        with GATE.hold(), self._errors():
            return self._method(method, "unary_unary")(request, timeout=timeout_s)

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,  # noqa: ARG002
        reply_bytes: int,  # noqa: ARG002
    ) -> "_Replies":
        with GATE.hold(), self._errors():
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
                self._channel = self._open_channel(self._target)
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
