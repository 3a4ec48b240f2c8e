"""The frames of a bulk channel <-> bytes; docs/wire.md describes them."""

import struct
from enum import IntEnum
from typing import NamedTuple

from mixserve_client.errors import CorruptReply, InvalidRequest, MixserveError, class_of
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.error import error_metadata, error_of, error_text
from mixserve_client.wire.reply import LARGEST_REPLY_BYTES, parse_reply

# What each end sends first: the client with a token after it. Neither is the beginning of HTTP or of TLS.
HELLO = WELCOME = b"mixserve-bulk/1\n"
TOKEN_BYTES = 32
ALPN = "mixserve-bulk/1"

_HEADER = struct.Struct("<BBHIQ")
HEADER_BYTES = _HEADER.size
_ERROR_BYTES = 64 << 10


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1  # client: a BulkRequest, which begins a stream
    CANCEL = 2  # client: the stream shall end; without a payload
    REPLY = 3  # server: a Batch
    END = 4  # server: the stream has ended; without a payload
    ERROR = 5  # server: a BulkError, with which the stream has ended


_MOST_BYTES = {Kind.REPLY: LARGEST_REPLY_BYTES, Kind.END: 0, Kind.ERROR: _ERROR_BYTES}


class Header(NamedTuple):
    """The beginning of a frame: its kind, the number of its stream, and the bytes of its payload."""

    kind: Kind
    stream: int
    length: int


def encode_header(kind: Kind, stream: int, length: int = 0) -> bytes:
    """The header, in 16 bytes."""
    return _HEADER.pack(kind, 0, 0, stream, length)


def decode_header(data: bytes | bytearray | memoryview, at: int = 0) -> Header:
    """The header at the offset `at`. Raises ValueError."""
    kind, flags, reserved, stream, length = _HEADER.unpack_from(data, at)
    if flags or reserved:
        raise ValueError(f"a frame has the flags {flags} and {reserved}, and must have 0")
    return Header(Kind(kind), stream, length)


def decode_reply_header(data: bytes | bytearray | memoryview, at: int = 0) -> Header:
    """The header of a server's frame. Raises CorruptReply, also for payloads that are larger than any reply."""
    try:
        header = decode_header(data, at)
        if header.length > _MOST_BYTES[header.kind]:
            raise ValueError(f"a frame of the kind {header.kind.name} claims {header.length} bytes")
    except (ValueError, KeyError) as error:
        raise CorruptReply(f"the server's frame on a bulk channel cannot be read: {error!s:.200}") from error
    return header


def encode_bulk_request(stream: int, method: str, request: bytes) -> bytes:
    """The frame that begins a stream."""
    payload = mix_pb2.BulkRequest(method=method, request=request).SerializeToString()
    return encode_header(Kind.REQUEST, stream, len(payload)) + payload


def decode_bulk_request(payload: bytes) -> tuple[str, bytes]:
    """The method's path and the request's bytes. Raises InvalidRequest."""
    try:
        found = mix_pb2.BulkRequest.FromString(payload)
    except Exception as error:  # protobuf's DecodeError, and RecursionError
        raise InvalidRequest(f"a request on a bulk channel must be a mixserve.v1.BulkRequest: {error}") from None
    return found.method, found.request


def encode_bulk_error(stream: int, error: MixserveError) -> bytes:
    """The frame that ends a stream with `error`."""
    payload = mix_pb2.BulkError(
        code=class_of(error).code, text=error_text(error), metadata=dict(error_metadata(error))
    ).SerializeToString()
    return encode_header(Kind.ERROR, stream, len(payload)) + payload


def decode_bulk_error(payload: bytes) -> MixserveError:
    """The error that a server sent. Raises CorruptReply."""
    found = parse_reply(mix_pb2.BulkError, payload)
    return error_of(found.code, found.text, found.metadata.items())
