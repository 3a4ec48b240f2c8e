"""Traces of requests that fail: elsewhere again, late, or for good."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer, local_client, serve
from mixserve_client import MixClient, ServerFault, Unavailable, UnknownMixture
from tests.conftest import ROUTES
from tests.hanging_source import HangingSource
from tests.processes import DEADLINE_S, ONE_SIZE
from tests.tracing.recorded import Recorded, about, events, id_of, recording

SIZE, KEY = 8, 5
TOKEN = "mixserve_" + "aB3" * 20


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with recording() as found:
        yield found


class Broken:
    content_id = "broken"

    def __len__(self) -> int:
        return 10

    def element_spec(self) -> Any:
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids: np.ndarray) -> Any:
        raise ValueError(f"no disk for {TOKEN}")


def node_of(source: Any) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), source_names=["web"], plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [source])


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """The file while which the first of two replicas hangs."""
    yield (file := tmp_path / "hangs")
    file.unlink(missing_ok=True)


@pytest.mark.parametrize("is_gone", [True, False])
@pytest.mark.parametrize("route", ROUTES)
def test_after_a_failover_all_is_in_one_trace(recorded, hanging, tmp_path, route, is_gone):
    """The replica that is asked first is gone, or has the request and does not answer it."""
    nodes = [node_of(HangingSource(file)) for file in (hanging, tmp_path / "never")]
    with serve({"train": nodes[0]}) as one, serve({"train": nodes[1]}) as other:
        # The first in the list describes the mixture. The next request goes to the one that has waited for nothing yet.
        addresses = [other.address, one.address]
        # On a busy machine the other one takes its time, too, and must not be left for that.
        attempt_s = DEADLINE_S if is_gone else 2.0
        warm_up(other)
        recorded.clear()
        with MixClient.connect(addresses, patience_s=DEADLINE_S, attempt_s=attempt_s, **ROUTES[route]) as client:
            client.mixture()
            if is_gone:
                one.stop(grace_s=0)
            else:
                hanging.touch()
            with client.batches(SIZE, key=KEY, prefetch=0) as batches:
                next(batches)
            (asked,) = streams(recorded)
        hanging.unlink(missing_ok=True)  # so that the other call ends too
        calls = recorded.wait_for_calls(asked, 1 if is_gone else 2)
    assert events(asked) == ["failed", "failover"]
    failed, failover = asked.events
    assert about(failed)["server.address"] == one.address
    assert about(failed)["error.type"] == "Unavailable"
    assert about(failover)["server.address"] == about(asked)["server.address"] == other.address
    taken = recorded.one("mixserve.next")
    assert asked.parent.span_id == id_of(taken)
    assert {call.name for call in calls} == {"mixserve.StreamBatches"}
    assert {call.context.trace_id for call in calls} == {taken.context.trace_id}
    assert asked.status.is_unset
    assert asked.end_time <= taken.end_time


def warm_up(server: MixServer) -> None:
    """Let a server compile what its first batch needs."""
    with MixClient.connect(server.address, patience_s=DEADLINE_S) as client:
        client.get_batch_at(0, 2 * SIZE, key=KEY)


def streams(recorded: Recorded) -> list[ReadableSpan]:
    return [one for one in recorded.named("mixserve.request") if about(one)["rpc.method"] == "StreamBatches"]


@pytest.mark.parametrize("is_stream", [True, False])
def test_the_replica_that_is_asked_as_well_is_in_the_same_trace(recorded, hanging, tmp_path, is_stream):
    nodes = [node_of(HangingSource(file)) for file in (hanging, tmp_path / "never")]
    with serve({"train": nodes[0]}) as one, serve({"train": nodes[1]}) as other:
        addresses = [other.address, one.address]  # as above, `one` gets the request
        with MixClient.connect(addresses, patience_s=DEADLINE_S, attempt_s=DEADLINE_S, hedge=True) as client:
            client.mixture()
            hanging.touch()
            recorded.clear()
            if is_stream:
                with client.batches(SIZE, key=KEY, prefetch=0) as batches:
                    next(batches)
            else:
                client.get_batch_at(0, SIZE, key=KEY)
            (asked,) = recorded.named("mixserve.request")
            hanging.unlink()  # so that the other call ends too
            calls = recorded.wait_for_calls(asked, 2)
    assert about(asked)["server.address"] == other.address
    hedge = next(event for event in asked.events if event.name == "hedge")
    assert about(hedge) == {"server.address": other.address}
    assert {call.name for call in calls} == {"mixserve.StreamBatches" if is_stream else "mixserve.GetBatchAt"}
    assert {call.context.trace_id for call in calls} == {asked.context.trace_id}
    assert events(asked) == ["hedge", "failed"]  # so late that the other one is left out
    assert asked.status.is_unset


@pytest.mark.parametrize("where", ["in process", "grpc", "bulk"])
def test_the_error_of_a_source_is_in_all_spans_on_its_way_and_no_token(recorded, where):
    node = node_of(Broken())
    with serve({"train": node}) as server:
        client = (
            local_client({"train": node})
            if where == "in process"
            else MixClient.connect(server.address, patience_s=DEADLINE_S, token=TOKEN, **ROUTES[where])
        )
        with client, client.batches(SIZE, key=KEY, prefetch=0) as batches, pytest.raises(ServerFault) as raised:
            next(batches)
        recorded.wait_for(lambda: recorded.named("mixserve.StreamBatches"))
    failed = {span.name: span for span in recorded.all if not span.status.is_unset}
    way = ("mixserve.next", "mixserve.request", "mixserve.StreamBatches", "reply", "gather", "source web")
    assert set(failed) == set(way)
    for outer, inner in pairwise(way):
        assert failed[inner].parent.span_id == id_of(failed[outer])
    assert about(failed["mixserve.next"])["error.type"] == about(failed["mixserve.StreamBatches"])["error.type"]
    assert failed["mixserve.next"].status.description == str(raised.value)[:500]
    assert about(failed["source web"])["error.type"] == "FailedRead"
    assert "no disk" in failed["source web"].status.description
    assert TOKEN not in "".join(span.to_json() for span in recorded.all)


def test_what_no_server_answers_ends_with_an_error(recorded):
    with MixClient.connect("127.0.0.1:1", patience_s=0.2) as client, pytest.raises(Unavailable):
        client.get_batch_at(0, 1, key=1, mixture="train")
    asked = recorded.one("mixserve.request")
    assert about(asked)["error.type"] == "Unavailable"
    assert events(asked)[:2] == ["failed", "retry"]


def test_a_call_that_is_refused_before_it_is_read_has_a_span(recorded):
    with local_client({"train": node_of(Broken())}) as client, pytest.raises(UnknownMixture):
        client.get_batch_at(0, 1, key=1, mixture="other")
    call, asked = recorded.one("mixserve.GetMixture"), recorded.one("mixserve.request")
    assert about(call)["error.type"] == about(asked)["error.type"] == "UnknownMixture"
    assert call.parent.span_id == id_of(asked)
