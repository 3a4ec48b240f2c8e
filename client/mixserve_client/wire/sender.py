"""Who sends a request <-> bytes."""

from functools import lru_cache
from struct import Struct

from mixserve_client.schema.client_name import MOST_CHARACTERS
from mixserve_client.schema.requests import Sender
from mixserve_client.wire import frame
from mixserve_client.wire._generated import mix_pb2

_TRACE_CHARACTERS = 55
UNKNOWN = Sender()

_OF_BATCH = 8  # of GetBatchAtRequest
_CLIENT, _TRACE = 1, 4  # of Sender
_READER, _WAIT_SHARE = Struct("<BQ"), Struct("<Bf")
_READER_TAG, _WAIT_SHARE_TAG = 2 << 3 | 1, 3 << 3 | 5


def with_sender(request: bytes, sender: Sender) -> bytes:
    """An encoded request for a batch, with its sender added; see `with_slots`."""
    # Single calls are small, and have the same sender each time.
    return request + (_encode(sender) if sender.reader or sender.trace else _encode_known(sender))


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


def decode_sender(message: mix_pb2.Sender) -> Sender:
    """Who sends a request. What makes no sense is left out, since the reply does not depend on it."""
    share = message.wait_share if message.HasField("wait_share") and 0 <= message.wait_share <= 1 else None
    return Sender(
        _printable(message.client[:MOST_CHARACTERS]), message.reader, share, message.trace[:_TRACE_CHARACTERS]
    )


@lru_cache(maxsize=256)
def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)
