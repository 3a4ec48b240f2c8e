"""What tests of tokens call a server with."""

from typing import Any

import grpc

from mixserve import MixServer
from mixserve_client import MixClient
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2

DEADLINE_S = 30
ROWS = 512
ALL = {
    "reader": ("reader", None),
    "trainer": ("trainer", None),
    "admin": ("admin", None),
    "reader-a": ("reader", ["a"]),
    "trainer-a": ("trainer", ["a", "not here"]),
    "reader-c": ("reader", ["c"]),
    "reader-ab": ("reader", ["a", "b"]),
}
PURE = (
    methods.LIST_MIXTURES,
    methods.GET_MIXTURE,
    methods.GET_SOURCE,
    methods.GET_BATCH_AT,
    methods.DEFINE_SCHEDULE,
    methods.GET_SERVER,
    methods.GET_STATS,
)
STREAMS = (methods.STREAM_BATCHES, methods.STREAM_POSITIONS, methods.TAKE_RECORDS)
STATE = (
    methods.OPEN_SESSION,
    methods.RENEW_SESSIONS,
    methods.RELEASE_SESSIONS,
    methods.LIST_SESSIONS,
    methods.CALL_SESSION,
)
KEY = mix_pb2.Key(implementation="threefry2x32", words=[0, 7])
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NEEDED = dict.fromkeys(PURE + STREAMS, 0) | dict.fromkeys(STATE, 1) | {REFLECTION: 2}


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def status_of(server: MixServer, method: str, metadata: Any, request: bytes = b"") -> tuple[str, str]:
    """The status of a call, and its text."""
    with grpc.insecure_channel(server.address) as channel:
        try:
            if method in STREAMS:
                list(channel.unary_stream(method)(request, metadata=metadata, timeout=DEADLINE_S))
            elif method == REFLECTION:
                list(channel.stream_stream(method)(iter([request]), metadata=metadata, timeout=DEADLINE_S))
            else:
                channel.unary_unary(method)(request, metadata=metadata, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return error.code().name, error.details() or ""
    return "OK", ""


def client_of(server: MixServer, token: str | None, *, shared_memory: bool = False) -> MixClient:
    return MixClient.connect(server.address, patience_s=20, token=token, shared_memory=shared_memory)


def look(server: MixServer) -> None:
    """Have the server read its token file now if it has changed."""
    assert server._guard._tokens is not None
    server._guard._tokens.find("a token that makes it look")
