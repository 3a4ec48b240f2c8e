"""Requests <-> bytes, and the one place that says which positions and sizes may be asked for."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from mixserve_client.errors import InvalidRequest, OutOfRange
from mixserve_client.wire import frame
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.key import IMPLEMENTATION, KeyWords, check_wire_key
from mixserve_client.wire.shown import shown

POSITION_LIMIT = 2**63 - 1
POSITIONS_PER_REQUEST = 1 << 16
# What a request of any call may have, but for those of sessions that carry states: 2^16 positions have half of it.
SMALL_REQUEST_BYTES = 2 << 20
_SLOTS, _MOST_SLOTS = 15, 1 << 13

Positions = npt.NDArray[np.int64]
Range = tuple[int, int]  # start and size


class Content(IntEnum):
    """What comes for each position: its record, its provenance, or both."""

    RECORDS = 0
    RECORDS_AND_PROVENANCE = 1
    PROVENANCE = 2


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Rows [start, start + size) of a mixture under a key; an empty `expected_fingerprint` accepts any.

    `schedule` is the id of the reader's schedule, empty for the mixture's own.
    """

    mixture: str
    start: int
    size: int
    key: KeyWords
    expected_fingerprint: str = ""
    schedule: str = ""
    content: Content = Content.RECORDS
    slots: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """The rows of `count` batches, each `stride` positions behind the one before, in replies of `reply_rows` rows."""

    first: BatchRequest
    stride: int
    count: int
    reply_rows: int
    slots: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """The rows of all batches together."""
        return self.first.size * self.count

    def ranges(self, at: int, rows: int) -> list[Range]:
        """(start, size) of the positions of the rows [at, at + rows), as few ranges as they are."""
        size = self.first.size
        if self.stride == size:
            return [(self.first.start + at, rows)]
        found = list[Range]()
        while rows > 0:
            batch, offset = divmod(at, size)
            taken = min(rows, size - offset)
            found.append((self.first.start + batch * self.stride + offset, taken))
            at, rows = at + taken, rows - taken
        return found


@dataclass(frozen=True, slots=True, eq=False)
class PositionsRequest:
    """The rows at any `positions`, in their order, in replies of `reply_rows` rows."""

    mixture: str
    positions: Positions
    key: KeyWords
    reply_rows: int
    expected_fingerprint: str = ""
    schedule: str = ""
    content: Content = Content.RECORDS
    slots: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.positions)

    def ranges(self, at: int, rows: int) -> list[Range]:
        """(start, size) of the positions of the rows [at, at + rows)."""
        return ranges_of(self.positions[at : at + rows])


def ranges_of(positions: Positions) -> list[Range]:
    """The (start, size) ranges that give the positions, at least one, in their order: as few as there are."""
    first = np.flatnonzero(np.diff(positions, prepend=positions[0]) != 1)
    sizes = np.diff(first, append=len(positions))
    return list(zip(positions[first].tolist(), sizes.tolist(), strict=True))


def check_any_positions(positions: Any) -> Positions:
    """The positions as an array, known to exist.

    Raises InvalidRequest for what is no list of at least one integer, and negative ones; OutOfRange beyond 2^63 - 2.
    """
    try:
        given = np.asarray(positions)
    except (TypeError, ValueError):
        given = np.empty(0, np.object_)
    # Integers beyond 64 bits are objects.
    if given.ndim != 1 or not given.size or not (given.dtype.kind in "iu" or all(type(one) is int for one in given)):
        raise InvalidRequest(f"positions must be a list of integers, one at least, got {shown(positions, 200)}")
    least, most = int(given.min()), int(given.max())
    if least < 0:
        raise InvalidRequest(f"positions must be at least 0, got {shown(least)}")
    if most >= POSITION_LIMIT:
        raise OutOfRange(f"positions must be at most 2^63 - 2, got {shown(most)}; positions are 64-bit")
    return given.astype(np.int64)


def check_positions(start: Any, size: Any, size_limit: int | None = None, name: str = "size") -> tuple[int, int]:
    """`start` and `size` as ints, known to name positions that exist.

    Raises InvalidRequest for a size outside 1..size_limit, a negative start and what is no integer, OutOfRange where
    start + size would pass 2^63 - 1.
    """
    start, size = check_integer("start", start), check_integer(name, size)
    if size < 1 or (size_limit is not None and size > size_limit):
        allowed = "at least 1" if size_limit is None else f"in 1..{size_limit}"
        raise InvalidRequest(f"{name} must be {allowed}, got {shown(size)}")
    if start < 0:
        raise InvalidRequest(f"start must be at least 0, got {shown(start)}")
    if start + size > POSITION_LIMIT:
        raise OutOfRange(
            f"start + {name} must be at most 2^63 - 1, got {shown(start)} + {shown(size)}; positions are 64-bit"
        )
    return start, size


def check_integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int in `least`..`most`; no bool. Raises InvalidRequest, with the name."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        allowed = "" if least is None else f" of at least {least}" if most is None else f" in {least}..{most}"
        raise InvalidRequest(f"{name} must be an integer{allowed}, got {shown(value)}")
    return number


def check_truth(name: str, value: Any) -> bool:
    """`value`, if it is True or False. Raises InvalidRequest, with the name: "no" would count as true."""
    if type(value) not in (bool, np.bool_):
        raise InvalidRequest(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def encode_batch_request(request: BatchRequest) -> bytes:
    """The GetBatchAtRequest message, without slots."""
    return _batch_message(request).SerializeToString()


def encode_stream_request(request: StreamRequest) -> bytes:
    """The StreamBatchesRequest message, without slots."""
    return mix_pb2.StreamBatchesRequest(
        first=_batch_message(request.first), stride=request.stride, count=request.count, reply_rows=request.reply_rows
    ).SerializeToString()


def encode_positions_request(request: PositionsRequest) -> bytes:
    """The StreamPositionsRequest message, without slots."""
    return mix_pb2.StreamPositionsRequest(
        mixture=request.mixture,
        positions=request.positions.tolist(),
        key=_key_message(request.key),
        expected_fingerprint=request.expected_fingerprint,
        schedule=request.schedule,
        content=mix_pb2.Content.Name(request.content),
        reply_rows=request.reply_rows,
    ).SerializeToString()


def with_slots(request: bytes, slots: Sequence[int]) -> bytes:
    """An encoded request for batches that names slots of shared memory: messages are joined by joining their bytes."""
    return request + frame.delimited(_SLOTS, b"".join(map(frame.varint, slots)))


def decode_batch_request(data: bytes) -> BatchRequest:
    """The request in `data`; the size limit is the caller's to check. Raises InvalidRequest and OutOfRange."""
    try:
        message = mix_pb2.GetBatchAtRequest.FromString(data)
    except DecodeError as error:
        raise not_a("GetBatchAtRequest", data) from error
    return _batch_request(message)


def decode_stream_request(data: bytes) -> StreamRequest:
    """The request in `data`; limits on replies are the caller's to check. Raises InvalidRequest and OutOfRange."""
    try:
        message = mix_pb2.StreamBatchesRequest.FromString(data)
    except DecodeError as error:
        raise not_a("StreamBatchesRequest", data) from error
    if not message.HasField("first"):
        raise InvalidRequest("first is required: the request for the first batch")
    first = _batch_request(message.first)
    stride, count, reply_rows = message.stride, message.count, message.reply_rows
    if stride < first.size:
        raise InvalidRequest(f"stride must be at least first.size, got {stride} < {first.size}")
    for name, value in (("count", count), ("reply_rows", reply_rows)):
        if value < 1:
            raise InvalidRequest(f"{name} must be at least 1, got {value}")
    if first.start + (count - 1) * stride + first.size > POSITION_LIMIT:
        raise OutOfRange(
            f"the last batch must end at 2^63 - 1 or before, got {count} batches of {first.size}, {stride} apart, "
            f"from {first.start} on; positions are 64-bit"
        )
    return StreamRequest(first, stride, count, reply_rows, _slots(message.slots))


def decode_positions_request(data: bytes) -> PositionsRequest:
    """The request in `data`. Raises InvalidRequest and OutOfRange."""
    try:
        message = mix_pb2.StreamPositionsRequest.FromString(data)
    except DecodeError as error:
        raise not_a("StreamPositionsRequest", data) from error
    if not 1 <= len(message.positions) <= POSITIONS_PER_REQUEST:
        raise InvalidRequest(f"positions must be 1 to {POSITIONS_PER_REQUEST}, got {len(message.positions)} of them")
    positions = check_any_positions(np.fromiter(message.positions, np.int64, len(message.positions)))
    if message.reply_rows < 1:
        raise InvalidRequest(f"reply_rows must be at least 1, got {message.reply_rows}")
    return PositionsRequest(
        message.mixture,
        positions,
        _key(message),
        message.reply_rows,
        message.expected_fingerprint,
        message.schedule,
        _content(message),
        _slots(message.slots),
    )


def _batch_message(request: BatchRequest) -> mix_pb2.GetBatchAtRequest:
    return mix_pb2.GetBatchAtRequest(
        mixture=request.mixture,
        start=request.start,
        size=request.size,
        key=_key_message(request.key),
        expected_fingerprint=request.expected_fingerprint,
        schedule=request.schedule,
        content=mix_pb2.Content.Name(request.content),
    )


def _batch_request(message: mix_pb2.GetBatchAtRequest) -> BatchRequest:
    start, size = check_positions(message.start, message.size)
    return BatchRequest(
        message.mixture,
        start,
        size,
        _key(message),
        message.expected_fingerprint,
        message.schedule,
        _content(message),
        _slots(message.slots),
    )


def _slots(slots: Sequence[int]) -> tuple[int, ...]:
    if len(slots) > _MOST_SLOTS:
        raise InvalidRequest(f"slots must be at most {_MOST_SLOTS}, got {len(slots)} of them")
    return tuple(slots)


def _key_message(words: KeyWords) -> mix_pb2.Key:
    return mix_pb2.Key(implementation=IMPLEMENTATION, words=words.tolist())


def _key(message: mix_pb2.GetBatchAtRequest | mix_pb2.StreamPositionsRequest) -> KeyWords:
    if not message.HasField("key"):
        raise InvalidRequest("key is required: without a key a batch is not defined; send two threefry2x32 words")
    return check_wire_key(message.key.implementation, list(message.key.words[:3]))


def _content(message: mix_pb2.GetBatchAtRequest | mix_pb2.StreamPositionsRequest) -> Content:
    try:
        return Content(message.content)
    except ValueError:
        raise InvalidRequest(
            f"content must be one of {', '.join(mix_pb2.Content.keys())}, got {message.content}"
        ) from None


def check_mixture(name: Any) -> str:
    """`name`, if a mixture may be called so, and "" for None. Raises InvalidRequest."""
    name = "" if name is None else name
    if not isinstance(name, str) or not name.isprintable():
        raise InvalidRequest(f"mixture must be the name of a mixture, got {name!r:.100}")
    return name


def encode_mixture_request(mixture: str) -> bytes:
    """The GetMixtureRequest message. Raises InvalidRequest for a name that is no text."""
    return mix_pb2.GetMixtureRequest(mixture=check_mixture(mixture)).SerializeToString()


def decode_mixture_request(data: bytes) -> str:
    """The mixture's name in `data`, empty where none is given. Raises InvalidRequest."""
    try:
        return mix_pb2.GetMixtureRequest.FromString(data).mixture
    except DecodeError as error:
        raise not_a("GetMixtureRequest", data) from error


def decode_empty_request(name: str, data: bytes) -> None:
    """Check that `data` is a message without fields of its own, such as ListMixturesRequest. Raises InvalidRequest."""
    try:
        getattr(mix_pb2, name).FromString(data)
    except DecodeError as error:
        raise not_a(name, data) from error


def check_small(method: str, data: bytes) -> None:
    """Raises InvalidRequest for a request that is larger than its method needs, before it is read."""
    if len(data) > SMALL_REQUEST_BYTES:
        raise InvalidRequest(f"a request for {method} must have at most {SMALL_REQUEST_BYTES} bytes, got {len(data)}")


def not_a(message: str, data: bytes) -> InvalidRequest:
    """The error for bytes that cannot be read as that message."""
    return InvalidRequest(
        f"the request must be a mixserve.v1.{message} message, got {len(data)} bytes that are not; "
        "is the client of the same major version?"
    )
