"""The bytes of checksums: any bit that flips in a request, a reply, or the header of a frame is noticed."""

import itertools
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve_client import CorruptReply, Field, InvalidRequest, ServerFault
from mixserve_client.schema.fields import Content
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest
from mixserve_client.wire import frame
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.batch import batch_bytes, decode_batch, frame_batch, view_batch
from mixserve_client.wire.bulk import (
    HEADER_BYTES,
    Kind,
    decode_bulk_error,
    decode_bulk_request,
    decode_header,
    encode_bulk_error,
    encode_bulk_request,
    encode_header,
)
from mixserve_client.wire.checksum import (
    CHECKSUM_BYTES,
    ReplyTo,
    open_reply,
    open_request,
    seal_reply,
    seal_request,
    write_checksum,
)
from mixserve_client.wire.request import decode_batch_request, encode_batch_request
from tests.profiles import examples

FIELDS = (Field("id", np.dtype(np.int64), ()), Field("tokens", np.dtype(np.uint16), (5,)))
FINGERPRINT = "ab" * 32


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def reply_of(size: int, to: ReplyTo, seed: int = 0) -> bytes:
    """A reply with its checksum, as a server makes it in place."""
    length = batch_bytes(FINGERPRINT, FIELDS, size)
    message, memory = frame.empty_bytes(length + CHECKSUM_BYTES)
    rng = np.random.default_rng(seed)
    for array in frame_batch(memory, FINGERPRINT, FIELDS, size).values():
        array.reshape(-1).view(np.uint8)[...] = rng.integers(0, 256, array.nbytes)
    write_checksum(memory, length, to)
    return message


def test_golden_bytes() -> None:
    # The check value of CRC-32C: that of the digits is 0xe3069283.
    assert seal_request(b"123456789") == (bytes.fromhex("75839206e3") + b"123456789", 0xE3069283)
    to = ReplyTo(0xE3069283, 2)
    assert seal_reply(b"abc", to) == b"abc" + bytes.fromhex("75 ca 80 2a d8")
    whole = struct.pack("<II", *to) + b"abc"
    assert seal_reply(b"abc", to)[-4:] == seal_request(whole)[0][1:5]


def test_a_checksum_is_a_field_of_the_messages() -> None:
    request = mix_pb2.GetBatchAtRequest(mixture="train", size=8)
    sealed, checksum = seal_request(request.SerializeToString())
    request.checksum = checksum
    assert mix_pb2.GetBatchAtRequest.FromString(sealed) == request
    reply = reply_of(3, ReplyTo(checksum, 0))
    assert mix_pb2.Batch.FromString(reply).checksum == int.from_bytes(reply[-4:], "little")
    assert decode_batch(reply)[0] == FINGERPRINT  # a client that did not ask for it skips it


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 16), st.text(max_size=20), st.integers(0, 1 << 32))
def test_requests_come_back_with_and_without(start: int, size: int, mixture: str, draw: int) -> None:
    plain = encode_batch_request(BatchRequest(mixture, start, size, key_words(7), FINGERPRINT, "", Content.RECORDS))
    assert open_request(plain) == (plain, None)
    sealed, checksum = seal_request(plain)
    assert open_request(sealed) == (plain, checksum)
    assert decode_batch_request(sealed) == decode_batch_request(plain)  # an older server
    with pytest.raises(CorruptReply, match="send it again"):
        open_request(flipped(sealed, draw % (8 * len(sealed))))


@settings(max_examples=examples(100))
@given(st.integers(1, 200), st.integers(0, (1 << 32) - 1), st.integers(0, 1 << 33), st.data())
def test_any_bit_that_flips_in_a_reply_is_noticed(size: int, request: int, number: int, data: st.DataObject) -> None:
    to = ReplyTo(request, number)
    reply = reply_of(size, to, seed=size)
    batch = view_batch(open_reply(reply, to), FINGERPRINT, FIELDS, size)
    assert batch is None or batch["tokens"].shape == (size, 5)  # None: gRPC's bytes may be unaligned
    for bit in data.draw(st.lists(st.integers(0, 8 * len(reply) - 1), min_size=20, max_size=20)):
        with pytest.raises(CorruptReply, match="damaged"):
            open_reply(flipped(reply, bit), to)
    for other in (ReplyTo(request ^ 1, number), ReplyTo(request, number + 1)):
        with pytest.raises(CorruptReply, match="checksum is wrong"):
            open_reply(reply, other)


def test_every_bit_of_a_reply_counts() -> None:
    to = ReplyTo(1, 0)
    reply = reply_of(2, to)
    for bit in range(8 * len(reply)):
        with pytest.raises(CorruptReply):
            open_reply(memoryview(flipped(reply, bit)), to)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_reply_that_is_cut_is_noticed(cut: int) -> None:
    to = ReplyTo(1, 0)
    for reply in (reply_of(2, to), seal_reply(b"", to)):
        with pytest.raises(CorruptReply):
            open_reply(reply[:-cut], to)


def test_any_bit_that_flips_in_a_header_is_noticed() -> None:
    """A damaged length would make an end wait for bytes that do not come; a damaged kind is another frame."""
    draw = random.Random(0)
    for kind, _ in itertools.product(Kind, range(50)):
        stream, length = draw.getrandbits(draw.randrange(1, 33)), draw.getrandbits(draw.randrange(1, 31))
        header = encode_header(kind, stream, length, is_checked=True)
        assert len(header) == HEADER_BYTES
        assert decode_header(header) == (kind, stream, length, True)
        for bit in range(8 * HEADER_BYTES):
            with pytest.raises(ValueError, match=r"damaged|must have 0"):
                decode_header(flipped(header, bit))


def test_any_bit_that_flips_in_a_frame_is_noticed() -> None:
    request = encode_bulk_request(1, "/a/method", b"request", is_checked=True)[HEADER_BYTES:]
    assert decode_bulk_request(request, True) == ("/a/method", b"request")
    for bit in range(8 * len(request)):
        with pytest.raises(InvalidRequest, match="damaged"):
            decode_bulk_request(flipped(request, bit), True)
    error = encode_bulk_error(1, ServerFault("it failed"), is_checked=True)[HEADER_BYTES:]
    assert str(decode_bulk_error(error, True)) == "it failed"
    for bit in range(8 * len(error)):
        with pytest.raises(CorruptReply, match="damaged"):
            decode_bulk_error(flipped(error, bit), True)
