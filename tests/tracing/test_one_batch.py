"""The trace of one batch: from the trainer's `next` to the source, and back, over every transport."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, local_client, serve
from mixserve_client import AsyncMixClient, MixClient
from mixserve_client.schema.client_name import own_name
from tests.conftest import ROUTES, TRANSPORTS
from tests.processes import DEADLINE_S, ONE_SIZE
from tests.tracing.recorded import Recorded, about, events, id_of, recording

DESCRIPTIONS = {"mixserve.GetServer", "mixserve.GetMixture"}  # calls of an earlier test, whose spans may end late
ROWS, WIDTH = 32, 4096  # a batch of 512 KiB goes through shared memory

KEYS = itertools.count()  # one for each test: replies that were asked for a moment ago are not made again


class Read:
    """Rows that a source's own code reads."""

    content_id = "counts"

    def __len__(self) -> int:
        return 100

    def element_spec(self) -> Any:
        return {"x": jax.ShapeDtypeStruct((WIDTH,), np.int32)}

    def take(self, record_ids: np.ndarray) -> dict[str, np.ndarray]:
        with trace.get_tracer("of the user").start_as_current_span("disk"):
            return {"x": np.repeat(record_ids.astype(np.int32)[:, None], WIDTH, axis=1)}


@pytest.fixture(scope="module")
def mixed() -> MixDataSourcesNode:
    copied = ArraySource({"x": np.zeros((100, WIDTH), np.int32)})
    config = MixDataSourcesConfig(num_sources=2, weights=(0.5, 0.5), source_names=["books", "web"], plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [copied, Read()])


@pytest.fixture(scope="module")
def running(mixed: MixDataSourcesNode) -> Iterator[MixServer]:
    with serve({"train": mixed}) as server:
        yield server


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with recording() as found:
        yield found


def connect(transport: str, request: pytest.FixtureRequest) -> MixClient:
    if transport == "in-process":
        return local_client({"train": request.getfixturevalue("mixed")})
    return MixClient.connect(request.getfixturevalue("running").address, patience_s=DEADLINE_S, **ROUTES[transport])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_one_trace_goes_from_next_to_the_source_and_back(recorded, request, transport):
    with connect(transport, request) as client, client.batches(ROWS, key=next(KEYS), start=64, prefetch=0) as batches:
        client.mixture()
        recorded.clear()
        with trace.get_tracer("of the user").start_as_current_span("step") as step:
            next(batches)
        call = recorded.one("mixserve.StreamBatches")
    names = ("mixserve.next", "mixserve.request", "reply", "plan", "encode", "gather", "source web", "disk", "send")
    taken, asked, reply, plan, encode, gather, source, disk, send = map(recorded.one, names)
    apart = [span for span in recorded.all if span.context.trace_id != step.get_span_context().trace_id]
    assert {span.name for span in apart} <= DESCRIPTIONS
    way = [recorded.one("step"), taken, asked, call, reply, gather, source, disk]
    for parent, child in [*itertools.pairwise(way), (reply, plan), (reply, encode), (reply, send)]:
        assert child.parent is not None
        assert child.parent.span_id == id_of(parent), child.name
    for parent, child in recorded.below(taken):
        assert child.start_time >= parent.start_time, child.name
        # A server learns that a reply has been taken when its reader wants the next one, and may have the rows then.
        if child.name not in ("mixserve.StreamBatches", "reply", "send"):
            assert child.end_time <= parent.end_time, child.name
            assert child.end_time <= asked.end_time <= taken.end_time
    assert plan.end_time <= encode.end_time <= gather.start_time <= gather.end_time <= send.start_time

    here = {"mixserve.mixture": "train", "mixserve.position": 64, "mixserve.rows": ROWS}
    assert about(taken) == here | {"mixserve.prefetched": False, "mixserve.wait_s": about(taken)["mixserve.wait_s"]}
    assert 0 < about(taken)["mixserve.wait_s"] <= (taken.end_time - taken.start_time) / 1e9
    rpc = {"rpc.system": "mixserve", "rpc.service": "mixserve.v1.MixService", "rpc.method": "StreamBatches"}
    assert about(call) == rpc | here | {"mixserve.client": own_name()}
    assert about(reply) == {"mixserve.position": 64, "mixserve.rows": ROWS}
    records = about(source)["mixserve.records"]
    assert 0 < records < ROWS
    assert about(source) == {
        "mixserve.source": "web",
        "mixserve.records": records,
        "mixserve.bytes": records * WIDTH * 4,
    }
    way = about(asked).pop("mixserve.transport")
    assert way.startswith(transport)
    address = transport if transport == "in-process" else request.getfixturevalue("running").address
    assert about(asked) == rpc | {"mixserve.mixture": "train", "server.address": address, "mixserve.transport": way}
    assert (asked.kind, call.kind) == (trace.SpanKind.CLIENT, trace.SpanKind.SERVER)
    assert all(not span.events and not span.links and span.status.is_unset for span in recorded.all)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_prefetched_batch_leads_to_the_request_that_brought_it(recorded, request, transport):
    with connect(transport, request) as client, client.batches(ROWS, key=next(KEYS), stop=3 * ROWS) as batches:
        assert len(list(batches)) == 3
    first, second, third, end = recorded.named("mixserve.next")
    asked = {id_of(span): span for span in recorded.named("mixserve.request")}
    assert first.links == end.links == ()
    for position, span in ((ROWS, second), (2 * ROWS, third)):
        (link,) = span.links
        assert asked[link.context.span_id].parent.span_id == id_of(first)
        (call,) = recorded.wait_for_calls(asked[link.context.span_id])
        assert call.name == "mixserve.StreamBatches"
        assert about(span)["mixserve.position"] == position
        assert about(span)["mixserve.prefetched"] is True
    assert end.status.is_unset
    assert "mixserve.rows" not in about(end)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_single_batches_and_positions_are_traced_too(recorded, request, transport):
    with connect(transport, request) as client:
        client.mixture()
        recorded.clear()
        client.get_batch_at(8, 2, key=next(KEYS))
        client.get_batch_by_positions([7, 3], key=next(KEYS))
        methods, position = ("GetBatchAt", "StreamPositions"), (8, 7)
        for method, asked, first in zip(methods, recorded.named("mixserve.request"), position, strict=True):
            (call,) = recorded.wait_for_calls(asked)
            assert call.name == f"mixserve.{method}"
            assert about(call)["mixserve.position"] == first
            assert about(call)["mixserve.rows"] == 2
            assert {"plan", "gather", "encode"} <= {child.name for _, child in recorded.below(call)}


@pytest.mark.parametrize("transport", ["grpc", "in-process"])
def test_calls_that_read_no_batch_belong_to_their_requests(recorded, request, transport):
    with connect(transport, request) as client, trace.get_tracer("of the user").start_as_current_span("step") as step:
        with client.session("one", mixture="train") as session:
            session.next_batch(4)
        recorded.wait_for(lambda: len(recorded.named("mixserve.ReleaseSessions")) == 1)
    calls = [span for span in recorded.all if span.kind == trace.SpanKind.SERVER]
    assert {"mixserve.GetMixture", "mixserve.OpenSession", "mixserve.CallSession"} <= {span.name for span in calls}
    asked = {id_of(span): span for span in recorded.named("mixserve.request")}
    for call in calls:
        assert about(asked[call.parent.span_id])["rpc.method"] == about(call)["rpc.method"]
        assert call.context.trace_id == step.get_span_context().trace_id


@pytest.mark.parametrize("transport", ["grpc", "in-process"])
def test_calls_of_an_event_loop_belong_to_their_task(recorded, request, transport):
    async def read(client: MixClient) -> None:
        with trace.get_tracer("of the user").start_as_current_span("task"):
            async with AsyncMixClient(client).batches(ROWS, key=next(KEYS), prefetch=0) as batches:
                await anext(batches)

    with connect(transport, request) as client:
        asyncio.run(read(client))
    assert recorded.one("mixserve.next").parent.span_id == id_of(recorded.one("task"))


def test_readers_that_share_a_reply_have_a_span_each(recorded, running):
    with MixClient.connect(running.address, patience_s=DEADLINE_S, **ROUTES["grpc"]) as client:
        key = next(KEYS)
        for _ in range(3):
            with client.batches(ROWS, key=key, prefetch=0) as batches:
                next(batches)
        recorded.wait_for(lambda: len(recorded.named("mixserve.StreamBatches")) == 3)
    made = [len(recorded.children(reply)) for reply in recorded.named("reply")]
    assert made[0] == 4  # plan, encode, gather and send
    assert made[2] == 1  # it was there


def test_the_pieces_of_a_large_batch_are_replies_of_one_call(recorded, running):
    with MixClient.connect(running.address, patience_s=DEADLINE_S, **ROUTES["grpc"]) as client:
        client.get_batch_at(0, 512, key=next(KEYS))
        (call,) = recorded.wait_for_calls(recorded.named("mixserve.request")[-1])
    replies = [span for span in recorded.children(call) if span.name == "reply"]
    assert len(replies) > 2
    assert sum(about(reply)["mixserve.rows"] for reply in replies) == 512
    starts = [about(reply)["mixserve.position"] for reply in replies]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert all("send" in [child.name for child in recorded.children(reply)] for reply in replies)


def test_a_reader_that_stops_early_leaves_no_span_open(recorded, running):
    with MixClient.connect(running.address, patience_s=DEADLINE_S, **ROUTES["bulk"]) as client:
        with client.batches(ROWS, key=next(KEYS), prefetch=16) as batches:
            next(batches)
        recorded.wait_for(lambda: not orphans(recorded))
    assert all(events(span) == [] for span in recorded.all)


def orphans(recorded: Recorded) -> list[ReadableSpan]:
    ids = {id_of(span) for span in recorded.all}
    return [span for span in recorded.all if span.parent is not None and span.parent.span_id not in ids]
