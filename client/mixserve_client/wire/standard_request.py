"""Bytes -> requests of gRPC's standard services, health and reflection."""

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from mixserve_client.errors import InvalidRequest

M = TypeVar("M", bound=Message)

LONGEST_BYTES = 4096  # of a request, which is a name


def decode_standard_request(kind: type[M], data: bytes) -> M:
    """The message of `kind` in `data`. Raises InvalidRequest."""
    # Not by gRPC (1.85): after a request that it cannot decode, it ends the call twice, and then waits for its end for
    # ever. A server with such a call could not be stopped.
    name = kind.DESCRIPTOR.name
    if len(data) > LONGEST_BYTES:
        raise InvalidRequest(f"a {name} may have {LONGEST_BYTES} bytes, and this one has {len(data)}")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"this is not a {name}: {error}") from error
