"""Who sends a request <-> bytes."""

from functools import lru_cache
from struct import Struct

from mixserve_client.schema.client_name import MOST_CHARACTERS
from mixserve_client.schema.requests import Sender
from mixserve_client.wire import frame, methods
from mixserve_client.wire._generated import mix_pb2

_TRACE_CHARACTERS = 55
UNKNOWN = Sender()

_OF_BATCH, _OF_POSITIONS = 8, 9  # of GetBatchAtRequest, and of StreamPositionsRequest and TakeRecordsRequest
_FIRST_BATCH = 1  # of StreamBatchesRequest
_CLIENT, _TRACE = 1, 4  # of Sender
_READER, _WAIT_SHARE = Struct("<BQ"), Struct("<Bf")
_READER_TAG, _WAIT_SHARE_TAG = 2 << 3 | 1, 3 << 3 | 5


def with_sender(request: bytes, sender: Sender) -> bytes:
    """An encoded request for a batch, with its sender added; see `with_slots`."""
    # Single calls are small, and have the same sender each time.
    return request + (_encode(sender) if sender.reader or sender.trace else _encode_known(sender))


def with_trace(method: str, request: bytes, trace: str) -> bytes:
    """An encoded request, which says within which span it was made; as it is if its message has no room for that."""
    # Appended as in `with_slots`: a message that comes again, such as the sender, is merged with the one before.
    sender = frame.delimited(_TRACE, trace.encode())
    if method == methods.GET_BATCH_AT:
        return request + frame.delimited(_OF_BATCH, sender)
    if method == methods.STREAM_BATCHES:
        return request + frame.delimited(_FIRST_BATCH, frame.delimited(_OF_BATCH, sender))
    if method in (methods.STREAM_POSITIONS, methods.TAKE_RECORDS):
        return request + frame.delimited(_OF_POSITIONS, sender)
    return request


def _encode(sender: Sender) -> bytes:
    # By hand, as in `with_batches`.
    encoded = _encode_client(sender.client)
    if sender.reader:
        encoded += _READER.pack(_READER_TAG, sender.reader)
    if sender.wait_share is not None:
        encoded += _WAIT_SHARE.pack(_WAIT_SHARE_TAG, sender.wait_share)
    if sender.trace:
        encoded += frame.delimited(_TRACE, sender.trace.encode())
    return frame.delimited(_OF_BATCH, encoded)


_encode_known = lru_cache(maxsize=64)(_encode)


@lru_cache(maxsize=256)
def _encode_client(name: str) -> bytes:
    return frame.delimited(_CLIENT, name.encode()) if name else b""


def sender_message(sender: Sender) -> mix_pb2.Sender | None:
    """The Sender message; None if nothing is known of the sender."""
    if sender == UNKNOWN:
        return None
    return mix_pb2.Sender(client=sender.client, reader=sender.reader, wait_share=sender.wait_share, trace=sender.trace)


def sender_of(message: mix_pb2.Sender) -> Sender:
    """Who sends a request. What makes no sense is left out, since the reply does not depend on it."""
    share = message.wait_share if message.HasField("wait_share") and 0 <= message.wait_share <= 1 else None
    return Sender(
        _printable(message.client[:MOST_CHARACTERS]), message.reader, share, message.trace[:_TRACE_CHARACTERS]
    )


@lru_cache(maxsize=256)
def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)
