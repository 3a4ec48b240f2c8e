"""A server's bytes -> a message; replies that would cost the client too much memory or time are refused."""

from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from mixserve_client.errors import CorruptReply
from mixserve_client.wire import frame

# A record has up to 2^30 bytes, and comes in one reply. The largest description has a schedule of 2^20 weights (8 MiB).
LARGEST_REPLY_BYTES = (1 << 30) + (64 << 20)
DESCRIPTION_BYTES = 32 << 20
# protobuf turns two bytes of a message into an object of a hundred. Replies that are larger than descriptions hold
# arrays, so they have few parts: these are counted before protobuf reads them.
_PARTS = 1 << 21  # a state with as many values as a request may set, 2^18, has half of that
_LEVELS = 100  # protobuf's own limit

M = TypeVar("M", bound=Message)


def parse_reply(kind: type[M], data: bytes, most_bytes: int = DESCRIPTION_BYTES, counted_from: int | None = None) -> M:
    """The message of type `kind` in `data`. Raises CorruptReply if it is unreadable, larger than `most_bytes`, or
    larger than `counted_from` bytes (None: than descriptions) and made of too many parts."""
    name = kind.DESCRIPTOR.name
    if len(data) > most_bytes:
        raise CorruptReply(f"the server's {name} must have at most {most_bytes} bytes, got {len(data)}")
    try:
        if len(data) > (DESCRIPTION_BYTES if counted_from is None else counted_from):
            _count(kind.DESCRIPTOR, memoryview(data), _PARTS, _LEVELS)
        return kind.FromString(data)
    except (DecodeError, ValueError) as error:
        raise CorruptReply(f"the server's {name} of {len(data)} bytes cannot be read: {error!s:.200}") from error


def _count(descriptor: Any, message: memoryview, left: int, levels: int) -> int:
    """`left` minus the number of parts in the message. Raises ValueError if it has too many parts or levels."""
    if not levels:
        raise ValueError(f"it has more than {_LEVELS} levels")
    known = descriptor.fields_by_number
    for number, value in frame.fields(message, left):
        field = known.get(number)
        left -= 1
        if field is None or isinstance(value, int):
            continue
        if field.message_type is not None:
            left = _count(field.message_type, value, left, levels - 1)
        elif field.type not in (field.TYPE_BYTES, field.TYPE_STRING):  # packed numbers: a varint has at least one byte
            left -= len(value) // (8 if field.type == field.TYPE_DOUBLE else 1)
        if left < 0:
            raise ValueError(f"it has more than {_PARTS} parts")
    return left
