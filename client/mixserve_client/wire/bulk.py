"""The frames of a bulk channel <-> bytes; docs/wire.md describes them."""

import struct
from enum import IntEnum
from typing import NamedTuple

from mixserve_client.errors import CorruptReply, InvalidRequest, MixserveError, class_of
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.checksum import header_checksum, load_crc32c, open_request, seal_request
from mixserve_client.wire.error import error_metadata, error_of, error_text
from mixserve_client.wire.reply import LARGEST_REPLY_BYTES, parse_reply

# What each end sends first: the client with a token after it. Neither is the beginning of HTTP or of TLS.
HELLO = WELCOME = b"mixserve-bulk/1\n"
TOKEN_BYTES = 32
ALPN = "mixserve-bulk/1"

_HEADER = struct.Struct("<BBHIQ")
HEADER_BYTES = _HEADER.size
_ERROR_BYTES = 64 << 10
_CHECKED = 1  # the flag of a header with a checksum


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1  # client: a BulkRequest, which begins a stream
    CANCEL = 2  # client: the stream shall end; without a payload
    REPLY = 3  # server: a Batch
    END = 4  # server: the stream has ended; without a payload
    ERROR = 5  # server: a BulkError, with which the stream has ended


_MOST_BYTES = {Kind.REPLY: LARGEST_REPLY_BYTES, Kind.END: 0, Kind.ERROR: _ERROR_BYTES}


class Header(NamedTuple):
    """The beginning of a frame: its kind, the number of its stream, the bytes of its payload, and whether the header
    itself has a checksum."""

    kind: Kind
    stream: int
    length: int
    is_checked: bool = False


def encode_header(kind: Kind, stream: int, length: int = 0, *, is_checked: bool = False) -> bytes:
    """The header, in 16 bytes."""
    if not is_checked:
        return _HEADER.pack(kind, 0, 0, stream, length)
    checksum = header_checksum(_HEADER.pack(kind, _CHECKED, 0, stream, length))
    return _HEADER.pack(kind, _CHECKED, checksum, stream, length)


def decode_header(data: bytes | bytearray | memoryview, at: int = 0) -> Header:
    """The header at the offset `at`. Raises ValueError."""
    kind, flags, checksum, stream, length = _HEADER.unpack_from(data, at)
    if flags == _CHECKED and load_crc32c() is not None:
        if checksum != header_checksum(_HEADER.pack(kind, flags, 0, stream, length)):
            raise ValueError("the checksum of a frame's header is wrong: it was damaged on its way")
    elif flags or checksum:
        raise ValueError(f"a frame has the flags {flags} and {checksum}, and must have 0")
    return Header(Kind(kind), stream, length, bool(flags))


def decode_reply_header(data: bytes | bytearray | memoryview, is_checked: bool = False) -> Header:
    """The header of a server's frame. Raises CorruptReply, also for payloads that are larger than any reply, and unless
    it has a checksum exactly if `is_checked`."""
    try:
        header = decode_header(data)
        if header.is_checked != is_checked:
            raise ValueError(f"a header must have {'a' if is_checked else 'no'} checksum")
        if header.length > _MOST_BYTES[header.kind]:
            raise ValueError(f"a frame of the kind {header.kind.name} claims {header.length} bytes")
    except (ValueError, KeyError) as error:
        raise CorruptReply(f"the server's frame on a bulk channel cannot be read: {error!s:.200}") from error
    return header


def encode_bulk_request(stream: int, method: str, request: bytes, *, is_checked: bool = False) -> bytes:
    """The frame that begins a stream."""
    return _frame(Kind.REQUEST, stream, mix_pb2.BulkRequest(method=method, request=request), is_checked)


def decode_bulk_request(payload: bytes, is_checked: bool = False) -> tuple[str, bytes]:
    """The method's path and the request's bytes. Raises InvalidRequest."""
    try:
        found = mix_pb2.BulkRequest.FromString(_unsealed(payload) if is_checked else payload)
    except Exception as error:  # protobuf's DecodeError, RecursionError, and what `_unsealed` raises
        raise InvalidRequest(f"a request on a bulk channel must be a mixserve.v1.BulkRequest: {error}") from None
    return found.method, found.request


def encode_bulk_error(stream: int, error: MixserveError, *, is_checked: bool = False) -> bytes:
    """The frame that ends a stream with `error`."""
    code, text, metadata = class_of(error).code, error_text(error), dict(error_metadata(error))
    return _frame(Kind.ERROR, stream, mix_pb2.BulkError(code=code, text=text, metadata=metadata), is_checked)


def _frame(kind: Kind, stream: int, message: mix_pb2.BulkRequest | mix_pb2.BulkError, is_checked: bool) -> bytes:
    payload = message.SerializeToString(deterministic=True)  # the metadata of an error are a map
    if is_checked:
        payload = seal_request(payload)[0]
    return encode_header(kind, stream, len(payload), is_checked=is_checked) + payload


def decode_bulk_error(payload: bytes, is_checked: bool = False) -> MixserveError:
    """The error that a server sent. Raises CorruptReply."""
    found = parse_reply(mix_pb2.BulkError, _unsealed(payload) if is_checked else payload)
    return error_of(found.code, found.text, found.metadata.items())


def _unsealed(payload: bytes) -> bytes:
    """The payload without its checksum. Raises CorruptReply if it has none, or a wrong one."""
    message, checksum = open_request(payload)
    if checksum is None:
        raise CorruptReply("the payload of a frame on a bulk channel has no checksum: it was damaged on its way")
    return message
