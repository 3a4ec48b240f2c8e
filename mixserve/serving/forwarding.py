"""Hands the calls of sessions on to the worker that keeps them, with their callers' credentials and deadlines."""

import grpc

from mixserve_client.errors import Unavailable
from mixserve_client.wire.error import ERROR_METADATUM, error_of
from mixserve_client.wire.reply import LARGEST_REPLY_BYTES

_OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST_REPLY_BYTES),
    ("grpc.max_send_message_length", -1),
    # As the clients' own: a call without a deadline must not wait for ever for a process that hangs.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),  # callers try again
    ("grpc.enable_http_proxy", 0),
]
# Who calls, and within which span.
_HANDED_ON = ("authorization", "traceparent")
_CALLER = "mixserve-caller"
_UNLIMITED_S = 1e8  # more is no deadline, and would overflow gRPC's clocks as a timeout


class StateForwarder:
    """Calls to one worker over its Unix socket; connects at the first call, and again after the worker was replaced."""

    def __init__(self, address: str):
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)

    def call(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        """The reply to the call of `context`. Raises the MixserveError that the worker answers, else Unavailable."""
        sent = tuple((key, value) for key, value in context.invocation_metadata() if key in _HANDED_ON)
        call = self._channel.unary_unary(method).future(
            request, timeout=_timeout_s(context), metadata=(*sent, (_CALLER, context.peer()))
        )

        def end() -> None:
            call.cancel()

        if not context.add_callback(end):  # the caller is gone
            end()
        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise Unavailable("the caller has ended this call") from None
        except grpc.RpcError:
            code, metadata = call.code().name, tuple(call.trailing_metadata() or ())
            if code == "UNAVAILABLE" and ERROR_METADATUM not in dict(metadata):  # gRPC's text has a path of ours
                raise Unavailable("the process that keeps the sessions has ended; wait for its successor") from None
            raise error_of(code, call.details() or "", metadata) from None

    def close(self) -> None:
        """End the calls in flight."""
        self._channel.close()


def _timeout_s(context: grpc.ServicerContext) -> float | None:
    """Seconds until the call's deadline, None for none."""
    left_s = context.time_remaining()
    return None if left_s is None or left_s > _UNLIMITED_S else left_s


def caller_of(context: grpc.ServicerContext) -> str:
    """The peer that made a call, also if a worker has handed it on."""
    peer = context.peer()
    if peer.startswith("unix:"):  # only workers can connect to that socket
        for key, value in context.invocation_metadata():
            if key == _CALLER and isinstance(value, str):
                return value
    return peer
