"""Checksums (CRC-32C): the first field of a request, and the last one of a reply, so that flipped bits are noticed.

`mix.proto` describes them under "Checksums".
"""

import struct
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixserve_client.errors import CorruptReply, InvalidRequest

# Field 14 of every request and reply, as fixed32: a byte of tag, and the checksum.
_TAG = 14 << 3 | 5
CHECKSUM_BYTES = 5

_FIELD = struct.Struct("<BI")
_PREFIX = struct.Struct("<II")
# The checksum of some bytes from that of the bytes before them (0: there are none).
Extend = Callable[[int, Any], int]


class ReplyTo(NamedTuple):
    """Which reply a checksum belongs to: the checksum of its request, and its number among the replies to it.

    Both go into the reply's own checksum. Otherwise a reply that a flipped bit led to another request, or that is
    missing from the middle of a stream, would not be noticed.
    """

    request: int
    number: int


@cache
def load_crc32c() -> Extend | None:
    """The function of google-crc32c that extends a checksum; None if it is not installed, or has no compiled code."""
    try:
        library: Any = import_module("google_crc32c")
    except ImportError:
        return None
    # Its code in Python takes 0.2 s for 2 MiB.
    return library.extend if library.implementation == "c" else None


def require_crc32c() -> None:
    """Raises InvalidRequest, which says what to install, if this end cannot compute checksums."""
    if load_crc32c() is None:
        raise InvalidRequest(
            "checksum=True needs google-crc32c, with its compiled code: pip install 'mixserve-client[checksum]'; or "
            "connect with checksum=False"
        )


def seal_request(request: bytes) -> tuple[bytes, int]:
    """The request after its checksum, and the checksum."""
    checksum = _extend()(0, request)
    return _FIELD.pack(_TAG, checksum) + request, checksum


def open_request(request: bytes) -> tuple[bytes, int | None]:
    """A request without its checksum, and the checksum; None if it has none.

    Raises CorruptReply if the request was damaged, and InvalidRequest if it has a checksum and this end cannot compute
    any.
    """
    if len(request) < CHECKSUM_BYTES:
        return request, None
    tag, checksum = _FIELD.unpack_from(request)
    extend = load_crc32c()
    if extend is None:
        if tag == _TAG:
            raise InvalidRequest(
                "this server cannot compute checksums: pip install 'mixserve[checksum]' where it runs, or connect "
                "with checksum=False"
            )
        return request, None
    is_right = extend(0, np.frombuffer(request, np.uint8)[CHECKSUM_BYTES:]) == checksum
    if tag != _TAG and not is_right:
        return request, None
    if tag != _TAG or not is_right:
        raise CorruptReply(
            f"the request of {len(request)} bytes was damaged on its way to the server, as its checksum shows: send it "
            "again"
        )
    return request[CHECKSUM_BYTES:], checksum


def seal_reply(message: bytes, to: ReplyTo) -> bytes:
    """The reply with its checksum: a copy."""
    return message + _FIELD.pack(_TAG, _of_reply(message, to))


def write_checksum(memory: npt.NDArray[np.uint8], size: int, to: ReplyTo) -> None:
    """Write the checksum of the reply in the first `size` bytes of `memory` into the five bytes after them."""
    field = _FIELD.pack(_TAG, _of_reply(memory[:size], to))
    memory[size : size + CHECKSUM_BYTES] = np.frombuffer(field, np.uint8)


def open_reply(reply: bytes | memoryview, to: ReplyTo) -> memoryview:
    """The reply without its checksum, as a view. Raises CorruptReply if it has none, or a wrong one."""
    size = len(reply) - CHECKSUM_BYTES
    if size < 0 or reply[size] != _TAG:
        raise CorruptReply(
            f"the server's reply of {len(reply)} bytes has no checksum: it was damaged on its way, or the server is "
            "older than checksums"
        )
    if _FIELD.unpack_from(reply, size)[1] != _of_reply(np.frombuffer(reply, np.uint8)[:size], to):
        raise CorruptReply(f"the server's reply of {len(reply)} bytes was damaged on its way: its checksum is wrong")
    return memoryview(reply)[:size]


def header_checksum(header: bytes) -> int:
    """The checksum of a frame's header in 16 bits, never 0."""
    checksum = _extend()(0, header)
    return (checksum >> 16 ^ checksum & 0xFFFF) or 0xFFFF


def _of_reply(message: Any, to: ReplyTo) -> int:
    """`message` is bytes or an array of uint8: google-crc32c takes no memoryview."""
    extend = _extend()
    return extend(extend(0, _PREFIX.pack(to.request, to.number & 0xFFFFFFFF)), message)


def _extend() -> Extend:
    extend = load_crc32c()
    assert extend is not None, "each end looks for it before it promises checksums"
    return extend
