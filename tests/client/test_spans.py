"""Requested rows: every row once and in order in any order of arrival, and requests with exactly those rows."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mixserve_client import CorruptReply, FingerprintMismatch, InvalidRequest, MixserveError, OutOfRange, UnknownMixture
from mixserve_client.reading.ranges import StridedRange, batches_ahead, reply_batches, whole_replies
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.positions import POSITION_LIMIT
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.batch import decode_batch, decode_slot_reply, encode_slot_reply
from mixserve_client.wire.request import (
    decode_batch_request,
    decode_stream_request,
    encode_batch_request,
    encode_stream_request,
    with_slots,
)
from tests.profiles import examples


@st.composite
def spans(draw: st.DrawFn) -> StridedRange:
    size, count = draw(st.integers(1, 20)), draw(st.integers(1, 10))
    stride = size + draw(st.one_of(st.just(0), st.integers(1, 50)))
    last_start = POSITION_LIMIT - (count - 1) * stride - size
    return StridedRange(draw(st.one_of(st.integers(0, 100), st.integers(0, last_start))), size, stride, count)


def positions(span: StridedRange) -> list[int]:
    return [span.start + batch * span.stride + row for batch in range(span.count) for row in range(span.size)]


@given(span=spans(), data=st.data())
def test_every_row_comes_once_and_in_order_however_few_come_at_a_time(span, data):
    came: list[int] = []
    while (left := span.after(len(came))) is not None:
        asked = positions(left)
        came += asked[: data.draw(st.integers(1, len(asked)))]
    assert came == positions(span)


@given(spans())
def test_nothing_is_left_exactly_when_all_rows_have_come(span):
    assert span.after(0) == span
    rows = span.size * span.count
    assert span.after(rows) is None
    assert positions(span.after(rows - 1)) == positions(span)[-1:]


@given(first=st.integers(0, 10**6), most=st.integers(1, 5000), per_reply=st.integers(1, 300))
def test_asking_for_whole_replies_gets_on_and_no_reply_crosses_the_grid(first, most, per_reply):
    count = whole_replies(first, most, per_reply)
    assert 1 <= count <= most
    for start in range(first, first + count, per_reply):
        last = min(start + per_reply, first + count) - 1
        assert start // per_reply == last // per_reply


@given(starts=st.lists(st.integers(0, 60), min_size=2, max_size=4), per_reply=st.integers(1, 9), seed=st.integers())
def test_readers_that_start_anywhere_come_to_the_same_replies(starts, per_reply, seed):
    """At any number of batches in flight, if it is at least one reply's worth."""
    rng, reached = random.Random(seed), []
    for first in starts:
        replies, at = set[tuple[int, int]](), first
        while at < 120:
            count = whole_replies(at, rng.randint(per_reply, 5 * per_reply), per_reply)
            replies |= {(start, min(start + per_reply, at + count)) for start in range(at, at + count, per_reply)}
            at += count
        reached.append({(start, stop) for start, stop in replies if start >= 60 + per_reply and stop <= 120})
    assert all(reached[0] == other != set() for other in reached)


@given(batch_bytes=st.integers(0, 1 << 40), prefetch=st.integers(1, 100))
def test_what_is_read_ahead_is_what_was_asked_for_or_bounded_in_bytes_and_number(batch_bytes, prefetch):
    ahead = batches_ahead(batch_bytes, prefetch)
    assert ahead >= prefetch
    assert ahead == prefetch or (ahead * batch_bytes <= 64 << 20 and ahead <= 1 << 16)
    assert batches_ahead(batch_bytes + 1 + batch_bytes // 2, prefetch) <= ahead
    assert batches_ahead(batch_bytes, 0) == 0


@given(st.integers(0, 1 << 40))
def test_a_reply_holds_a_batch_at_least_and_more_only_of_small_ones(batch_bytes):
    assert reply_batches(batch_bytes) == 1 or reply_batches(batch_bytes) * batch_bytes <= 16 << 20
    assert 1 <= reply_batches(batch_bytes + 1) <= reply_batches(batch_bytes)


def request_of(span: StridedRange, reply_rows: int = 7, slots: tuple[int, ...] = ()) -> StreamRequest:
    first = BatchRequest("train", span.start, span.size, key_words(5), "f")
    return StreamRequest(first, span.stride, span.count, reply_rows, slots)


@given(span=spans(), data=st.data())
def test_the_ranges_of_a_cut_are_its_rows_and_no_more_ranges_than_they_need(span, data):
    wanted, rows = request_of(span), positions(span)
    assert wanted.rows == len(rows)
    at = data.draw(st.integers(0, len(rows) - 1))
    taken = data.draw(st.integers(1, len(rows) - at))
    ranges = wanted.ranges(at, taken)
    assert [start + i for start, size in ranges for i in range(size)] == rows[at : at + taken]
    assert all(start + size < following for (start, size), (following, _) in pairwise(ranges))


@given(span=spans(), reply_rows=st.integers(1, 50))
def test_the_replies_together_are_the_rows_of_all_batches(span, reply_rows):
    wanted = request_of(span, reply_rows)
    found: list[int] = []
    for at in range(0, wanted.rows, reply_rows):
        for start, size in wanted.ranges(at, min(reply_rows, wanted.rows - at)):
            found += range(start, start + size)
    assert found == positions(span)


slot_ids = st.lists(st.integers(1, 2**64 - 1), max_size=20).map(tuple)


@given(span=spans(), reply_rows=st.integers(1, 2**62), slots=slot_ids, name=st.text(max_size=9))
def test_stream_requests_come_back(span, reply_rows, slots, name):
    first = BatchRequest(name, span.start, span.size, key_words(5), "f")
    data = encode_stream_request(StreamRequest(first, span.stride, span.count, reply_rows))
    got = decode_stream_request(with_slots(data, slots))
    assert (got.stride, got.count, got.reply_rows, got.slots) == (span.stride, span.count, reply_rows, slots)
    assert (got.first.mixture, got.first.start, got.first.size) == (name, span.start, span.size)
    assert got.first.key.tolist() == [0, 5]
    assert got.first.expected_fingerprint == "f"


@given(slots=slot_ids, more=slot_ids)
def test_slots_that_are_joined_to_a_request_are_those_that_protobuf_reads(slots, more):
    batch = encode_batch_request(BatchRequest("train", 3, 4, key_words(5)))
    stream = encode_stream_request(request_of(StridedRange(3, 4, 9, 2)))
    for kind, plain in ((mix_pb2.GetBatchAtRequest, batch), (mix_pb2.StreamBatchesRequest, stream)):
        expected = kind.FromString(plain)
        expected.slots.extend(slots)
        assert kind.FromString(with_slots(plain, slots)) == expected
        expected.slots.extend(more)
        assert kind.FromString(with_slots(with_slots(plain, slots), more)) == expected
    assert decode_batch_request(with_slots(batch, slots)).slots == slots


@given(slot=st.integers(1, 2**63 - 1), size=st.integers(1, 2**62))
def test_replies_that_point_at_a_slot_are_protobufs(slot, size):
    data = encode_slot_reply(slot, size)
    parsed = mix_pb2.Batch.FromString(data)
    assert (parsed.slot, parsed.slot_bytes, len(parsed.arrays)) == (slot, size, 0)
    assert decode_slot_reply(data) == (slot, size)
    assert decode_slot_reply(mix_pb2.Batch(slot=slot, slot_bytes=size).SerializeToString()) == (slot, size)
    for cut in range(1, len(data)):
        with pytest.raises(CorruptReply, match="reference to a slot"):
            decode_slot_reply(data[:cut])


def test_replies_that_hold_a_batch_point_at_none():
    assert decode_slot_reply(b"") is None
    assert (
        decode_slot_reply(mix_pb2.Batch(fingerprint="f", arrays=[mix_pb2.Array(name="x")]).SerializeToString()) is None
    )


@pytest.fixture
def stream(client):
    """Send raw bytes to StreamBatches over the client's transport; returns at most `most` replies' bytes."""

    def ask(data: bytes, most: int = 100) -> list[bytes]:
        replies = client._caller.transport.stream(methods.STREAM_BATCHES, data, 20.0, 4, 1 << 20)
        found: list[bytes] = []
        for reply in replies:
            found.append(bytes(reply))
            if len(found) == most:
                replies.cancel()
                break
        return found

    return ask


def rows_of(replies: list[bytes], field: str = "id") -> np.ndarray:
    return np.concatenate([decode_batch(reply)[1][field] for reply in replies])


KEY = mix_pb2.Key(implementation="threefry2x32", words=[0, 5])


def message(first: dict | None = None, **changes: int) -> mix_pb2.StreamBatchesRequest:
    """A good request for 3 batches of 8 rows; `first` is changed by the test."""
    described = {"start": 4, "size": 8, "key": KEY} | (first or {})
    numbers = {"stride": 10, "count": 3, "reply_rows": 5} | changes
    return mix_pb2.StreamBatchesRequest(first=mix_pb2.GetBatchAtRequest(**described), **numbers)


def test_a_stream_holds_the_rows_of_its_batches(client, stream):
    found = rows_of(stream(message().SerializeToString()))
    assert found.tolist() == np.concatenate([client.get_batch_at(4 + 10 * i, 8, 5)["id"] for i in range(3)]).tolist()


def test_slots_that_nobody_knows_change_nothing(stream):
    plain = stream(message().SerializeToString())
    named = stream(message().SerializeToString() + with_slots(b"", [1, 2**64 - 1, 7]))
    assert rows_of(named).tolist() == rows_of(plain).tolist()


NO_KEY = mix_pb2.StreamBatchesRequest(first=mix_pb2.GetBatchAtRequest(size=1), stride=1, count=1, reply_rows=1)
BAD_STREAMS = [
    (message(stride=7), InvalidRequest, r"stride must be at least first.size, got 7 < 8"),
    (message(stride=0), InvalidRequest, "stride must be at least first.size, got 0 < 8"),
    (message(stride=-(2**63)), InvalidRequest, "stride must be at least first.size, got -9223372036854775808"),
    (message(count=0), InvalidRequest, "count must be at least 1, got 0"),
    (message(count=-1), InvalidRequest, "count must be at least 1, got -1"),
    (message(reply_rows=0), InvalidRequest, "reply_rows must be at least 1, got 0"),
    (message(reply_rows=-3), InvalidRequest, "reply_rows must be at least 1, got -3"),
    (message({"size": 0}), InvalidRequest, "size must be at least 1, got 0"),
    (message({"start": -1}), InvalidRequest, "start must be at least 0, got -1"),
    (message({"start": 2**63 - 4}), OutOfRange, r"at most 2\^63 - 1"),
    (message({"start": 2**63 - 28}), OutOfRange, r"the last batch must end at 2\^63 - 1 or before, got 3 batches of 8"),
    (message(count=2**63 - 1, stride=2**63 - 1), OutOfRange, "the last batch must end"),
    (message({"mixture": "x"}), UnknownMixture, "one of 'train', got 'x'"),
    (message({"expected_fingerprint": "00"}), FingerprintMismatch, "expected '00'"),
    (mix_pb2.StreamBatchesRequest(stride=1, count=1, reply_rows=1), InvalidRequest, "first is required"),
    (mix_pb2.StreamBatchesRequest(), InvalidRequest, "first is required"),
    (NO_KEY, InvalidRequest, "key is required"),
]


@pytest.mark.parametrize(
    ("request_", "error", "said"), BAD_STREAMS, ids=lambda value: " ".join(str(value).split())[-40:]
)
def test_bad_stream_requests_are_typed_errors_and_the_server_goes_on(stream, request_, error, said):
    with pytest.raises(error, match=said):
        stream(request_.SerializeToString())
    assert len(rows_of(stream(message().SerializeToString()))) == 24


def test_the_last_positions_of_all_can_be_had(client, stream):
    found = rows_of(stream(message({"start": 2**63 - 1 - 28}).SerializeToString()))
    assert found[-8:].tolist() == client.get_batch_at(2**63 - 1 - 8, 8, 5)["id"].tolist()


@pytest.mark.parametrize(
    "vast",
    [
        message({"size": 2**62}, stride=2**62, count=1),
        message({"size": 2**62}, stride=2**62, count=1, reply_rows=2**62),
        message(count=2**58),
        message(count=2**58, reply_rows=2**63 - 1),
    ],
    ids=["size", "size in one reply", "count", "count in one reply"],
)
def test_a_request_for_nearly_everything_is_answered_reply_by_reply(client, stream, vast):
    found = rows_of(stream(vast.SerializeToString(), most=2))[:8]
    assert found[:5].tolist() == client.get_batch_at(4, 5, 5)["id"].tolist()
    assert len(rows_of(stream(message().SerializeToString()))) == 24


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(), st.binary(max_size=40).map(lambda data: message().SerializeToString() + data)))
@example(data=bytes(5))
@example(data=b"u" * 6)
def test_random_bytes_as_a_stream_request_are_answered_or_refused(stream, data):
    try:
        stream(data, most=3)
    except MixserveError as error:
        # CorruptReply: the first bytes may be a checksum, and a wrong one.
        known = InvalidRequest | OutOfRange | UnknownMixture | FingerprintMismatch | CorruptReply
        assert isinstance(error, known), error


def test_truncated_stream_requests_are_refused_and_the_server_goes_on(stream):
    whole = message({"mixture": "train"}, reply_rows=300).SerializeToString()
    for cut in range(len(whole)):
        with pytest.raises(InvalidRequest) as caught:
            stream(whole[:cut])
        assert str(caught.value)
    assert len(rows_of(stream(whole))) == 24
