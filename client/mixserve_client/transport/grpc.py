"""Moves requests over a gRPC channel; only this module turns gRPC's statuses into our errors."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

import grpc

from mixserve_client import tracing
from mixserve_client.credentials import TokenOptions
from mixserve_client.errors import CorruptReply, InvalidRequest, MixserveError, Unauthenticated, Unavailable
from mixserve_client.metrics.requests import RequestFigures
from mixserve_client.schema.addresses import check_address
from mixserve_client.transport.allocator import keep_freed_memory
from mixserve_client.transport.base import Interrupted, Lane, ReadMode
from mixserve_client.transport.channel import KEEPALIVE_S, SELDOM_S, Channel
from mixserve_client.transport.credentials import Credentials, Metadata
from mixserve_client.transport.diagnosis import Diagnosis
from mixserve_client.transport.endpoints import check_may_have_token
from mixserve_client.transport.forking import GATE
from mixserve_client.transport.sockets import check_owner, socket_of
from mixserve_client.wire.error import ERROR_METADATUM, error_of

_logger = logging.getLogger("mixserve_client")

_ANOTHER_AFTER_S = 0.5  # after a connection was opened, another one takes its place at the earliest
_TOO_MANY_PINGS = "too many pings"  # gRPC's word for it, with or without underscores


class GrpcTransport:
    """One server, by its gRPC target (`host:port`, `dns:///name:port`, `unix:///path`); connects at the first call."""

    def __init__(self, target: str, credentials: Credentials | None = None, figures: RequestFigures | None = None):
        """Without `credentials`, in plain text and without a token. Counts connections in `figures`."""
        self._figures = RequestFigures() if figures is None else figures
        self._target = check_address(target)
        self._credentials = Credentials(None, TokenOptions()) if credentials is None else credentials
        self._socket = socket_of(self._target)
        self._diagnosis = Diagnosis(self._target, self._credentials.tls, self._credentials.server)
        self._channel: Channel | None = None
        self._refused: object = None  # version of files that cannot be used
        self._keepalive_s = KEEPALIVE_S
        self._number = 0  # of the channel, counted up when another connection is wanted
        # Reentrant: the garbage collector may close the client in a thread that holds it.
        self._lock = threading.RLock()
        self._closed = False
        self._has_answered = False  # what fails later may pass: a proxy that is away, a certificate that comes late

    @property
    def name(self) -> str:
        return f"grpc {self._target}"

    def read_mode(self, method: str, request: bytes) -> ReadMode:  # noqa: ARG002
        return ReadMode.BACKGROUND

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        with GATE.hold(), self._convert_errors(_until(timeout_s), metadata := self._metadata()):
            channel = self._current_channel()
            try:
                call = channel.take(method, "unary_unary")
                sent = metadata if tracing.spans is None else (*metadata, *tracing.spans.headers())
                reply: bytes | None = call(request, timeout=timeout_s, metadata=sent)
                self._has_answered = True
                if reply is None:  # gRPC's answer if the call ended well, and its message was lost
                    raise CorruptReply(f"{self._target}: the call has ended without a reply")
                return reply
            finally:
                channel.put_back()

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,  # noqa: ARG002
        reply_bytes: int,  # noqa: ARG002
        lane: Lane | None = None,  # noqa: ARG002
    ) -> "_Replies":
        with GATE.hold():
            metadata = self._metadata()
            convert_errors = partial(self._convert_errors, _until(timeout_s), metadata)
            with convert_errors():
                channel = self._current_channel()
                try:
                    call = channel.take(method, "unary_stream")
                    replies_to_come = call(request, timeout=timeout_s, metadata=metadata)
                except BaseException:
                    channel.put_back()
                    raise
                return _Replies(replies_to_come, convert_errors, channel.put_back)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()

    def _metadata(self) -> Metadata:
        """What to send with a call. Raises Unauthenticated rather than send a token where others could read it."""
        metadata = self._credentials.metadata()
        if metadata and self._credentials.tls is None:
            check_may_have_token(self._target)
        elif metadata and self._socket is not None:
            check_owner(self._socket)
        return metadata

    def _current_channel(self) -> Channel:
        """The channel for a new call: another one if the files of TLS have changed."""
        with self._lock:
            if self._closed:
                raise Unavailable(f"the client of {self._target} is closed; connect again")
            if self._channel is None:
                keep_freed_memory()
                self._channel = self._open_channel()
            elif (version := self._credentials.channel_version()) not in (self._channel.version, self._refused):
                self._replace(self._channel, version)
            return self._channel

    def _replace(self, old: Channel, version: object) -> None:
        """Open a channel with the files of TLS as they are now; keep `old` if these cannot be used."""
        try:
            self._channel = self._open_channel()
        except InvalidRequest as error:  # they may be half-written, and change again
            self._refused = version
            _logger.error("%s: %s; the client goes on with the files that it had", self._target, error)
        else:
            self._has_answered = False
            old.retire()

    def _open_channel(self) -> Channel:
        found = Channel(self._target, self._credentials, self._keepalive_s, self._number)
        self._figures.note_connection("grpc")
        return found

    def _ping_seldom(self) -> None:
        """The server is older than our pings, or a proxy does not like them."""
        with self._lock:
            old, self._channel, self._keepalive_s = self._channel, None, SELDOM_S
        if old is not None:
            old.retire()

    def _leave(self) -> None:
        """Let the next call have another connection: the server has said that it is stopping, or is not available.

        Behind a proxy, or the address of a service, it is one of several, and this connection leads to it for as long
        as it finishes other calls.
        """
        with self._lock:
            old = self._channel
            if old is None or self._socket is not None or time.monotonic() - old.opened_at < _ANOTHER_AFTER_S:
                return
            self._channel = None
            self._number += 1
        old.retire()

    @contextmanager
    def _convert_errors(self, until: float | None, sent: Metadata) -> Generator[None]:
        """Raise what gRPC raises inside as our errors. The call ends at the time `until`; `sent` are its metadata."""
        try:
            yield
        except grpc.RpcError as error:
            # gRPC raises the stream object itself as the error, so its traceback would make a cycle through the frames
            # of all callers: what they hold, also batches in shared memory, would wait for Python's cycle collector.
            raise self._convert(error, until, sent) from error.with_traceback(None)
        except ValueError as error:  # what grpc raises if another thread has closed the channel
            if self._closed:
                raise Unavailable(f"the client of {self._target} is closed; connect again") from error
            raise

    def _convert(self, error: grpc.RpcError, until: float | None, sent: Metadata) -> MixserveError:
        assert isinstance(error, grpc.Call)
        metadata = tuple(cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ()))
        code, details = error.code().name, error.details() or ""
        if ERROR_METADATUM not in dict(metadata):
            if _TOO_MANY_PINGS in details.lower().replace("_", " "):
                self._ping_seldom()
            if code == "UNAVAILABLE":
                reason = self._diagnosis.reason(details, None if until is None else until - time.monotonic())
                if reason is not None:
                    details = reason
                    if not self._has_answered:  # trying again would not help
                        return Unauthenticated(f"{self._target}: {reason}")
            details = f"{self._target}: {details}"
            # CANCELLED may mean that the connection broke, or that the server ended the call in order to stop: retry.
            code = "UNAVAILABLE" if code == "CANCELLED" else code
        if code == "UNAUTHENTICATED" and self._credentials.has_another_token(sent):
            return Unavailable(f"the token has changed since the call began, and the old one is refused: {details}")
        found = error_of(code, details, metadata)
        if isinstance(found, Unavailable) and ERROR_METADATUM in dict(metadata):
            self._leave()
        return found


def _until(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s


class _Replies:
    def __init__(
        self, call: Any, convert_errors: Callable[[], AbstractContextManager[None]], put_back: Callable[[], None]
    ):
        self._call = call
        self._convert_errors = convert_errors
        self._interrupted = False
        number = GATE.add(self)

        def ended() -> None:
            GATE.remove(number)
            put_back()

        # False: the call has ended already, and gRPC will not call back.
        if not call.add_callback(ended):
            ended()

    def __iter__(self) -> Iterator[bytes]:
        try:
            with self._convert_errors():
                yield from self._call
        except Unavailable as error:
            if self._interrupted:
                raise Interrupted("this process forked while the stream was in flight") from error
            raise

    def wait_until(self, deadline: float | None) -> None:
        pass  # a call's deadline cannot be changed

    def interrupt(self) -> None:
        self._interrupted = True
        self._call.cancel()

    def cancel(self) -> None:
        # The stream may be over, and so out of the gate, before gRPC returns from this.
        with GATE.count():
            self._call.cancel()

    def abandon(self) -> None:
        self.cancel()
