"""The bytes of GetSource and TakeRecords, and what a server that sends others does to those who read its sources."""

from collections.abc import Iterable

import numpy as np
import pytest

from mixserve import RemoteSource
from mixserve.servicer.services import Services
from mixserve_client import CorruptReply, ServerFault, SourceChanged
from mixserve_client.schema.fields import Field
from mixserve_client.schema.records import RecordSource
from mixserve_client.schema.requests import RecordsRequest, Sender
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.request import decode_records_request, encode_records_request
from mixserve_client.wire.sender import with_trace
from mixserve_client.wire.source import (
    decode_source,
    decode_source_request,
    encode_source,
    encode_source_request,
)
from tests.hostile import Answers, hostile_server
from tests.remote.serving import array_sources, mixed

STREAMS = (methods.TAKE_RECORDS,)
SOURCE = RecordSource("data", "web", (Field("x", np.dtype(np.int32), (2, 3)),), 300, b"\x00\xff", "ab" * 32, True)
SOURCE_BYTES = bytes.fromhex(
    "0a0464617461" + "1203776562" + "1a0e0a017812" + "05696e743332" + "1a020203" + "20ac02" + "2a0200ff"
    + "3240" + "6162" * 32 + "3801"
)  # fmt: skip
REQUEST = RecordsRequest("data", "web", np.array([3, 300, 0]), 2, "ab" * 32, 1, (), Sender("me"))
REQUEST_BYTES = bytes.fromhex(
    "0a0464617461" + "120403ac0200" + "1a03776562" + "2001" + "2a40" + "6162" * 32 + "4002" + "4a040a026d65"
)  # fmt: skip


def test_a_source_has_these_bytes():
    assert encode_source_request("data", "web") == bytes.fromhex("0a04646174611203776562")
    assert decode_source_request(bytes.fromhex("0a04646174611203776562")) == ("data", "web")
    assert encode_source(SOURCE) == SOURCE_BYTES
    assert decode_source(SOURCE_BYTES) == SOURCE
    assert decode_source(SOURCE_BYTES + b"\x98\x06\x01") == SOURCE  # a field of a later version


def test_a_request_for_records_has_these_bytes():
    assert encode_records_request(REQUEST) == REQUEST_BYTES
    found = decode_records_request(REQUEST_BYTES)
    assert found.record_ids.tolist() == [3, 300, 0]
    for name in ("mixture", "source", "reply_rows", "expected_fingerprint", "hops", "slots", "sender"):
        assert getattr(found, name) == getattr(REQUEST, name)


def test_a_request_can_say_within_which_span_it_was_made():
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    found = decode_records_request(with_trace(methods.TAKE_RECORDS, REQUEST_BYTES, trace))
    assert (found.sender.trace, found.sender.client) == (trace, "me")


def test_the_fingerprint_of_a_source_stays():
    """Servers of different versions are replicas of each other's sources."""
    services = Services({"data": mixed(array_sources()[:1], ["a"])})
    found = decode_source(services.handle(methods.GET_SOURCE, encode_source_request("", "")))
    assert (found.mixture, found.name, found.length) == ("data", "a", 50)
    assert found.content.hex() == "a718380ff2eba7acd9b15bf664629f503ae61cc10e87a4131166e81c58c5e95f"
    assert found.fingerprint == "50ae1b52a9d9c1d83e10eb48582906aadbf9fc7a9d8e2f7c1756824603359af0"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mixture": "other"}, "describes the source 'web' of 'other', not 'web' of 'data'"),
        ({"name": "other"}, "describes the source 'other'"),
        ({"fingerprint": "AB" * 32}, "must have a mixture and a fingerprint"),
        ({"length": -1}, "length must be at least 0, got -1"),
        ({"fields": []}, "1 to 65536 fields"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(changed, said):
    message = mix_pb2.RecordSource.FromString(SOURCE_BYTES)
    if "fields" in changed:
        del message.fields[:]
    else:
        (name, value) = next(iter(changed.items()))
        setattr(message, name, value)
    answers = Answers(lambda *_: [message.SerializeToString()])
    with hostile_server(answers, STREAMS) as address, pytest.raises(CorruptReply, match=said):
        RemoteSource(address, mixture="data", source="web", patience_s=1)


def reply(rows: int, fingerprint: str = SOURCE.fingerprint, name: str = "x") -> bytes:
    array = mix_pb2.Array(name=name, dtype="int32", shape=[rows, 2, 3], data=bytes(24 * rows))
    return mix_pb2.Batch(fingerprint=fingerprint, arrays=[array]).SerializeToString()


@pytest.mark.parametrize(
    ("replies", "error", "said"),
    [
        ([reply(2), reply(3)], ServerFault, "rows, but 4 were requested"),
        ([reply(4, "cd" * 32)], SourceChanged, "its records would differ"),
        ([reply(4, name="y")], ServerFault, "does not match its description"),
        ([b"\xff\xff"], ServerFault, "cannot be read"),
    ],
)
def test_replies_with_other_records_are_refused(replies, error, said):
    def answer(method: str, _: bytes) -> Iterable[bytes]:
        return replies if method == methods.TAKE_RECORDS else [SOURCE_BYTES]

    with hostile_server(Answers(answer), STREAMS) as address:
        remote = RemoteSource(address, mixture="data", source="web", patience_s=1)
        with pytest.raises(error, match=said):
            remote.take(np.arange(4))


def test_a_stream_that_ends_early_is_continued():
    rows = iter([1, 2, 1])

    def answer(method: str, _: bytes) -> Iterable[bytes]:
        return [reply(next(rows))] if method == methods.TAKE_RECORDS else [SOURCE_BYTES]

    with hostile_server(Answers(answer), STREAMS) as address:
        assert RemoteSource(address, mixture="data", source="web").take(np.arange(4))["x"].shape == (4, 2, 3)
