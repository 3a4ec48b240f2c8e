"""Requests <-> bytes."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from google.protobuf.message import DecodeError

from mixserve_client.errors import InvalidRequest, OutOfRange
from mixserve_client.schema.checks import check_mixture
from mixserve_client.schema.fields import Content
from mixserve_client.schema.keys import IMPLEMENTATION, KeyWords, check_wire_key
from mixserve_client.schema.positions import (
    POSITION_LIMIT,
    POSITIONS_PER_REQUEST,
    check_any_positions,
    check_positions,
)
from mixserve_client.schema.requests import (
    MOST_HOPS,
    BatchRequest,
    PositionsRequest,
    RecordsRequest,
    Sender,
    StreamRequest,
)
from mixserve_client.wire import frame, methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.sender import UNKNOWN, sender_message, sender_of

# The limit on requests other than CallSession, which may carry states. protobuf takes up to 40 bytes of memory for one
# of a request, so each method has a limit near what it needs.
SMALL_REQUEST_BYTES = 2 << 20  # 2^16 entries of one weight need 1.5 MiB
_OTHERS_BYTES = 128 << 10  # with 2^13 slots
_REQUEST_BYTES = {
    methods.DEFINE_SCHEDULE: SMALL_REQUEST_BYTES,
    methods.STREAM_POSITIONS: 1 << 20,  # 2^16 positions and 2^13 slots
    methods.TAKE_RECORDS: 1 << 20,
    methods.RENEW_SESSIONS: 1 << 20,  # 1,000 sessions, also of mixtures with long names
    methods.RELEASE_SESSIONS: 1 << 20,
}
_SLOTS, _MOST_SLOTS = 15, 1 << 13
_START, _SIZE = 2, 3  # of GetBatchAtRequest
_FIRST, _STRIDE, _COUNT, _REPLY_ROWS = 1, 2, 3, 4  # of StreamBatchesRequest
_CONTENTS = {int(content): content for content in Content}


def encode_batch_request(request: BatchRequest) -> bytes:
    """The GetBatchAtRequest message, without slots."""
    return _batch_message(request).SerializeToString()


def with_rows(request: bytes, start: int, size: int) -> bytes:
    """An encoded request for no rows of a batch, with the rows [start, start + size) added."""
    return request + mix_pb2.GetBatchAtRequest(start=start, size=size).SerializeToString()  # see `with_slots`


def with_batches(request: bytes, start: int, size: int, stride: int, count: int, reply_rows: int) -> bytes:
    """The StreamBatchesRequest message for `count` batches whose starts are `stride` positions apart.

    `request` is an encoded request for no rows of a batch, as for `with_rows`. All numbers are at least 1 but `start`.
    """
    # Written by hand, since an iterator makes such requests between a trainer's steps, when the code of protobuf's
    # messages is no longer in the processor's caches. The bytes of `first` are merged as in `with_slots`.
    first = request + frame.number(_START, start) + frame.number(_SIZE, size)
    rest = frame.number(_STRIDE, stride) + frame.number(_COUNT, count) + frame.number(_REPLY_ROWS, reply_rows)
    return frame.delimited(_FIRST, first) + rest


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
        sender=sender_message(request.sender),
    ).SerializeToString()


def encode_records_request(request: RecordsRequest) -> bytes:
    """The TakeRecordsRequest message, without slots."""
    return mix_pb2.TakeRecordsRequest(
        mixture=request.mixture,
        source=request.source,
        record_ids=request.record_ids.tolist(),
        hops=request.hops,
        expected_fingerprint=request.expected_fingerprint,
        reply_rows=request.reply_rows,
        sender=sender_message(request.sender),
    ).SerializeToString()


def with_slots(request: bytes, slots: Sequence[int]) -> bytes:
    """An encoded request for batches, with slots of shared memory added."""
    # Appending bytes is enough: protobuf merges messages that are concatenated.
    return request + frame.delimited(_SLOTS, b"".join(map(frame.varint, slots)))


def decode_batch_request(data: bytes) -> BatchRequest:
    """The request in `data`; the caller checks the limit on sizes. Raises InvalidRequest and OutOfRange."""
    try:
        message = mix_pb2.GetBatchAtRequest.FromString(data)
    except DecodeError as error:
        raise unreadable_request("GetBatchAtRequest", data) from error
    return _batch_request(message)


def decode_stream_request(data: bytes) -> StreamRequest:
    """The request in `data`; the caller checks the limits on replies. Raises InvalidRequest and OutOfRange."""
    try:
        message = mix_pb2.StreamBatchesRequest.FromString(data)
    except DecodeError as error:
        raise unreadable_request("StreamBatchesRequest", data) from error
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
        raise unreadable_request("StreamPositionsRequest", data) from error
    if not 1 <= len(message.positions) <= POSITIONS_PER_REQUEST:
        raise InvalidRequest(
            f"the number of positions must be 1 to {POSITIONS_PER_REQUEST}, got {len(message.positions)}"
        )
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
        _sender(message),
    )


def decode_records_request(data: bytes) -> RecordsRequest:
    """The request in `data`; the caller checks that there are such records. Raises InvalidRequest and OutOfRange."""
    try:
        message = mix_pb2.TakeRecordsRequest.FromString(data)
    except DecodeError as error:
        raise unreadable_request("TakeRecordsRequest", data) from error
    count = len(message.record_ids)
    if not 1 <= count <= POSITIONS_PER_REQUEST:
        raise InvalidRequest(f"the number of record_ids must be 1 to {POSITIONS_PER_REQUEST}, got {count}")
    if message.reply_rows < 1:
        raise InvalidRequest(f"reply_rows must be at least 1, got {message.reply_rows}")
    if not 0 <= message.hops <= MOST_HOPS:
        raise InvalidRequest(
            f"hops must be in 0..{MOST_HOPS}, got {message.hops}: so many servers have asked for these records, one "
            "for the next; do servers read from each other in a circle?"
        )
    return RecordsRequest(
        message.mixture,
        message.source,
        np.fromiter(message.record_ids, np.int64, count),
        message.reply_rows,
        message.expected_fingerprint,
        message.hops,
        _slots(message.slots),
        _sender(message),
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
        sender=sender_message(request.sender),
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
        _sender(message),
    )


def _sender(
    message: mix_pb2.GetBatchAtRequest | mix_pb2.StreamPositionsRequest | mix_pb2.TakeRecordsRequest,
) -> Sender:
    return sender_of(message.sender) if message.HasField("sender") else UNKNOWN


def _slots(slots: Sequence[int]) -> tuple[int, ...]:
    if len(slots) > _MOST_SLOTS:
        raise InvalidRequest(f"a request may name at most {_MOST_SLOTS} slots, got {len(slots)}")
    return tuple(slots)


def _key_message(words: KeyWords) -> mix_pb2.Key:
    return mix_pb2.Key(implementation=IMPLEMENTATION, words=words.tolist())


def _key(message: mix_pb2.GetBatchAtRequest | mix_pb2.StreamPositionsRequest) -> KeyWords:
    if not message.HasField("key"):
        raise InvalidRequest("key is required: without a key a batch is not defined; send two threefry2x32 words")
    key = message.key
    # Three words are enough to see that there are too many.
    return _known_key(key.implementation, tuple(key.words[:3]))


@lru_cache(maxsize=256)
def _known_key(implementation: str, words: tuple[int, ...]) -> KeyWords:
    key = check_wire_key(implementation, list(words))
    key.flags.writeable = False  # it is that of all requests under this key
    return key


def _content(message: mix_pb2.GetBatchAtRequest | mix_pb2.StreamPositionsRequest) -> Content:
    content = _CONTENTS.get(message.content)
    if content is None:
        raise InvalidRequest(f"content must be one of {', '.join(mix_pb2.Content.keys())}, got {message.content}")
    return content


def encode_mixture_request(mixture: str) -> bytes:
    """The GetMixtureRequest message. Raises InvalidRequest unless `mixture` is printable text."""
    return mix_pb2.GetMixtureRequest(mixture=check_mixture(mixture)).SerializeToString()


def decode_mixture_request(data: bytes) -> str:
    """The mixture's name in `data`, empty if there is none. Raises InvalidRequest."""
    try:
        return mix_pb2.GetMixtureRequest.FromString(data).mixture
    except DecodeError as error:
        raise unreadable_request("GetMixtureRequest", data) from error


def decode_empty_request(name: str, data: bytes) -> None:
    """Check that `data` is the message `name`, which has no fields. Raises InvalidRequest."""
    try:
        getattr(mix_pb2, name).FromString(data)
    except DecodeError as error:
        raise unreadable_request(name, data) from error


def check_small(method: str, data: bytes) -> None:
    """Check a request's size before reading it. Raises InvalidRequest if it is larger than `method` needs."""
    most = _REQUEST_BYTES.get(method, _OTHERS_BYTES)
    if len(data) > most:
        raise InvalidRequest(f"a request for {method} must have at most {most} bytes, got {len(data)}")


def unreadable_request(message: str, data: bytes) -> InvalidRequest:
    """The error for a request that cannot be read as that message."""
    return InvalidRequest(
        f"the request must be a mixserve.v1.{message} message, got {len(data)} bytes that cannot be read as one; "
        "do client and server have the same major version?"
    )
