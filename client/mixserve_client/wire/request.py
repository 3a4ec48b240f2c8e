"""Requests <-> bytes, and the one place that says which positions and sizes may be asked for."""

import operator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from mixserve_client.errors import InvalidRequest, OutOfRange
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.key import IMPLEMENTATION, KeyWords, check_wire_key

POSITION_LIMIT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Rows [start, start + size) of a mixture under a key; an empty `expected_fingerprint` accepts any."""

    mixture: str
    start: int
    size: int
    key: KeyWords
    expected_fingerprint: str = ""


def check_positions(start: Any, size: Any, size_limit: int | None = None) -> tuple[int, int]:
    """`start` and `size` as ints, known to name positions that exist.

    Raises InvalidRequest for a size outside 1..size_limit, a negative start and what is no integer, OutOfRange where
    start + size would pass 2^63 - 1.
    """
    start, size = _integer("start", start), _integer("size", size)
    if size < 1 or (size_limit is not None and size > size_limit):
        allowed = "at least 1" if size_limit is None else f"in 1..{size_limit}"
        raise InvalidRequest(f"size must be {allowed}, got {size}")
    if start < 0:
        raise InvalidRequest(f"start must be at least 0, got {start}")
    if start + size > POSITION_LIMIT:
        raise OutOfRange(f"start + size must be at most 2^63 - 1, got {start} + {size}; positions are 64-bit")
    return start, size


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InvalidRequest(f"{name} must be an integer, got {value!r}") from None


def encode_batch_request(request: BatchRequest) -> bytes:
    """The GetBatchAtRequest message."""
    return mix_pb2.GetBatchAtRequest(
        mixture=request.mixture,
        start=request.start,
        size=request.size,
        key=mix_pb2.Key(implementation=IMPLEMENTATION, words=request.key.tolist()),
        expected_fingerprint=request.expected_fingerprint,
    ).SerializeToString()


def decode_batch_request(data: bytes) -> BatchRequest:
    """The request in `data`; the size limit is the caller's to check. Raises InvalidRequest and OutOfRange."""
    try:
        message = mix_pb2.GetBatchAtRequest.FromString(data)
    except DecodeError as error:
        raise _not_a("GetBatchAtRequest", data) from error
    start, size = check_positions(message.start, message.size)
    if not message.HasField("key"):
        raise InvalidRequest("key is required: without a key a batch is not defined; send two threefry2x32 words")
    key = check_wire_key(message.key.implementation, list(message.key.words))
    return BatchRequest(message.mixture, start, size, key, message.expected_fingerprint)


def encode_mixture_request(mixture: str) -> bytes:
    """The GetMixtureRequest message. Raises InvalidRequest for a name that is no text."""
    if not isinstance(mixture, str) or not mixture.isprintable():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidRequest(f"mixture must be the name of a mixture, got {mixture!r:.100}")
    return mix_pb2.GetMixtureRequest(mixture=mixture).SerializeToString()


def decode_mixture_request(data: bytes) -> str:
    """The mixture's name in `data`, empty where none is given. Raises InvalidRequest."""
    try:
        return mix_pb2.GetMixtureRequest.FromString(data).mixture
    except DecodeError as error:
        raise _not_a("GetMixtureRequest", data) from error


def decode_list_request(data: bytes) -> None:
    """Check that `data` is a ListMixturesRequest. Raises InvalidRequest."""
    try:
        mix_pb2.ListMixturesRequest.FromString(data)
    except DecodeError as error:
        raise _not_a("ListMixturesRequest", data) from error


def _not_a(message: str, data: bytes) -> InvalidRequest:
    return InvalidRequest(
        f"the request must be a mixserve.v1.{message} message, got {len(data)} bytes that are not; "
        "is the client of the same major version?"
    )
