"""What requests say about the span that they were made in: whom servers believe, and what is not recorded."""

import logging
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased

from mixserve import local_client, serve
from mixserve_client import MixClient
from mixserve_client.schema.fields import Content
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, PositionsRequest, Sender, StreamRequest
from mixserve_client.spans import format_traceparent, parse_traceparent
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.request import (
    decode_batch_request,
    decode_positions_request,
    decode_stream_request,
    encode_batch_request,
    encode_positions_request,
    encode_stream_request,
)
from mixserve_client.wire.sender import with_trace
from tests.conftest import ROUTES
from tests.processes import DEADLINE_S
from tests.tracing.recorded import Recorded, about, id_of, recording

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ONE = BatchRequest("train", 3, 4, key_words(1))


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with recording() as found:
        yield found


def test_requests_name_the_span_and_keep_who_sends_them():
    positions = PositionsRequest("train", np.array([5, 2]), key_words(1), 2)
    who = mix_pb2.Sender(client="host/1", reader=7)
    of_one = mix_pb2.GetBatchAtRequest(sender=who).SerializeToString()
    of_stream = mix_pb2.StreamBatchesRequest(first=mix_pb2.GetBatchAtRequest(sender=who)).SerializeToString()
    of_positions = mix_pb2.StreamPositionsRequest(sender=who).SerializeToString()
    one = decode_batch_request(with_trace(methods.GET_BATCH_AT, encode_batch_request(ONE) + of_one, TRACE))
    stream = decode_stream_request(
        with_trace(methods.STREAM_BATCHES, encode_stream_request(StreamRequest(ONE, 4, 2, 4)) + of_stream, TRACE)
    )
    some = decode_positions_request(
        with_trace(methods.STREAM_POSITIONS, encode_positions_request(positions) + of_positions, TRACE)
    )
    assert one.sender == stream.first.sender == some.sender == Sender("host/1", 7, None, TRACE)
    assert (one.start, stream.first.size, stream.count, some.positions.tolist()) == (3, 4, 2, [5, 2])
    assert with_trace(methods.LIST_MIXTURES, b"", TRACE) == b""


@pytest.mark.parametrize("content", list(Content))
def test_the_span_changes_no_reply(recorded, node, content):
    request = encode_batch_request(BatchRequest("train", 3, 4, key_words(1), content=content))
    with local_client({"train": node}) as client:
        call = client._caller.transport.call
        plain = call(methods.GET_BATCH_AT, request, None)
        assert call(methods.GET_BATCH_AT, with_trace(methods.GET_BATCH_AT, request, TRACE), None) == plain


def test_a_call_belongs_to_the_span_that_its_request_names(recorded, node):
    with serve({"train": node}) as server, MixClient.connect(server.address, **ROUTES["grpc"]) as client:
        request = with_trace(methods.GET_BATCH_AT, encode_batch_request(ONE), TRACE)
        client._caller.transport.call(methods.GET_BATCH_AT, request, DEADLINE_S)
    call = recorded.one("mixserve.GetBatchAt")
    assert format_traceparent(call.parent) == TRACE
    assert call.parent.is_remote


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 10_000,
        TRACE[:-1],
        TRACE.upper(),
        TRACE.replace("00-0", "ff-0"),
        TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        TRACE.replace("b7ad6b7169203331", "0" * 16),
        TRACE.replace("a", "\u0661"),
        TRACE + "\n",
    ],
)
def test_what_is_no_span_is_ignored(recorded, node, caplog, text):
    with caplog.at_level(logging.WARNING), local_client({"train": node}) as client:
        request = with_trace(methods.GET_BATCH_AT, encode_batch_request(ONE), text)
        assert client._caller.transport.call(methods.GET_BATCH_AT, request, None)
    # What comes after 55 characters does not count.
    assert (recorded.one("mixserve.GetBatchAt").parent is None) == (not text.startswith(TRACE))
    assert not caplog.records


@given(st.text(max_size=60) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True))
def test_texts_are_spans_or_nothing(text):
    found = parse_traceparent(text)
    if found is not None:
        assert found.is_valid
        assert format_traceparent(found)[3:] == text[3:]
        assert re.fullmatch(r"[0-9a-f-]{55}", text)


@pytest.mark.parametrize("route", ROUTES)
def test_what_the_trainer_does_not_record_the_server_does_not_record(node, route):
    seen = list[str]()
    with recording(ParentBased(ALWAYS_OFF)) as recorded:
        with (
            serve({"train": node}) as server,
            MixClient.connect(server.address, patience_s=DEADLINE_S, **ROUTES[route]) as client,
            client.batches(4, key=1, stop=64) as batches,
        ):
            for _ in batches:
                seen.append("batch")
        assert len(seen) == 16
        assert recorded.all == ()


def test_the_decision_to_record_travels_with_the_request(node):
    with recording(ParentBased(TraceIdRatioBased(0.3))) as recorded:
        with serve({"train": node}) as server, MixClient.connect(server.address, **ROUTES["grpc"]) as client:
            for at in range(100):
                client.get_batch_at(at, 1, key=1)
            requests = recorded.named("mixserve.request")
            asked = {id_of(span) for span in requests if about(span)["rpc.method"] == "GetBatchAt"}
            recorded.wait_for(lambda: len(recorded.named("mixserve.GetBatchAt")) >= len(asked))
        calls = recorded.named("mixserve.GetBatchAt")
        assert 5 <= len(calls) <= 60
        assert {call.parent.span_id for call in calls} == asked


def test_in_process_a_call_is_recorded_if_its_request_is(node):
    with recording(ParentBased(TraceIdRatioBased(0.3))) as recorded, local_client({"train": node}) as client:
        for at in range(100):
            client.get_batch_at(at, 1, key=1)
        # The client asks for the mixture too, and that request is recorded as often as any other.
        asked = [span for span in recorded.named("mixserve.request") if about(span)["rpc.method"] == "GetBatchAt"]
        calls = recorded.named("mixserve.GetBatchAt")
        assert 5 <= len(calls) <= 60
        assert [call.parent.span_id for call in calls] == [id_of(span) for span in asked]
        assert all(about(call)["mixserve.rows"] == 1 for call in calls)


def test_without_a_provider_nothing_is_traced(node):
    import mixserve.tracing
    import mixserve_client.tracing

    trace.get_tracer("of the user").start_span("of the API alone").end()
    with local_client({"train": node}) as client:
        client.get_batch_at(0, 1, key=1)
    assert mixserve.tracing.spans is None
    assert mixserve_client.tracing.spans is None


def test_the_name_of_the_client_is_told(recorded, node):
    who = mix_pb2.GetBatchAtRequest(sender=mix_pb2.Sender(client="trainer/7")).SerializeToString()
    with local_client({"train": node}) as client:
        client._caller.transport.call(methods.GET_BATCH_AT, encode_batch_request(ONE) + who, None)
    assert about(recorded.one("mixserve.GetBatchAt"))["mixserve.client"] == "trainer/7"


def test_hostile_texts_cost_next_to_nothing():
    texts = ["0" * 55, TRACE[:-1] + "g", "-" * 55, "00-" + "a" * 52]
    began = time.thread_time()
    for _ in range(1000):
        for text in texts:
            assert parse_traceparent(text) is None
    assert time.thread_time() - began < 1.0  # 4,000 of them
