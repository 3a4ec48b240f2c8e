"""Rows at arbitrary positions: equal to `get_batch_at` of each, over every transport and in both modes."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixserve import (
    ArraySource,
    MixDataSourcesConfig,
    MixDataSourcesNode,
    RandomAccessSource,
    local_client,
    serve,
)
from mixserve.mixture.blocks import PlanBlocks
from mixserve_client import InvalidRequest, MixClient, OutOfRange
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.positions import POSITIONS_PER_REQUEST, ranges_of
from mixserve_client.schema.requests import PositionsRequest
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.request import decode_positions_request, encode_positions_request
from tests.conftest import arrays, assert_batches_equal, make_node
from tests.profiles import examples

LAST = 2**63 - 2
near_each_other = st.integers(0, 30)
anywhere = st.integers(0, LAST) | near_each_other | st.integers(LAST - 30, LAST)
without_fixtures_anew = settings(
    max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def one_by_one(client: MixClient, positions: list[int], key: int, **options: Any) -> dict[str, np.ndarray]:
    rows = [client.get_batch_at(position, 1, key, **options) for position in positions]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@without_fixtures_anew
@given(positions=st.lists(anywhere, min_size=1, max_size=40), key=st.integers(0, 2**32 - 1))
def test_rows_are_those_of_their_positions(client, positions, key):
    assert_batches_equal(client.get_batch_by_positions(positions, key), one_by_one(client, positions, key))


@pytest.fixture(scope="module")
def in_passes():
    """An epoch mixture with an end; one of its sources is read record by record."""
    items = [{name: array[i] for name, array in arrays(200, 5).items()} for i in range(200)]
    sources = [ArraySource(arrays(70, 1)), RandomAccessSource(items), ArraySource(arrays(33, 2))]
    config = MixDataSourcesConfig(
        num_sources=3, weights=(1.0, 3.0, 2.0), sampling="epoch", block_size=16, stop="all_exhausted"
    )
    with serve({"train": MixDataSourcesNode(config, sources)}) as server, MixClient.connect(server.address) as client:
        yield client


@without_fixtures_anew
@given(
    positions=st.lists(st.integers(0, 380), min_size=1, max_size=60),
    schedule=st.none() | st.just([(32, (0.0, 1.0, 0.0))]),
)
def test_in_passes_under_a_schedule_and_with_provenance(in_passes, positions, schedule):
    options = {"schedule": schedule, "provenance": True}
    end = in_passes.end(schedule=schedule)
    there = [position % end for position in positions]
    assert_batches_equal(
        in_passes.get_batch_by_positions(there, 4, **options), one_by_one(in_passes, there, 4, **options)
    )
    with pytest.raises(OutOfRange, match=f"ends at position {end}"):
        in_passes.get_batch_by_positions([0, end, 1], 4, **options)


def test_positions_of_many_requests_come_in_their_order(client):
    positions = np.random.default_rng(0).integers(0, 2 * POSITIONS_PER_REQUEST, POSITIONS_PER_REQUEST + 5_000)
    whole = client.get_batch_at(0, 2 * POSITIONS_PER_REQUEST, 3)
    found = client.get_batch_by_positions(positions, 3)
    assert_batches_equal(found, {name: array[positions] for name, array in whole.items()})


def test_a_shuffled_range_is_planned_like_the_range(monkeypatch):
    planned = list[int]()
    plan_range = PlanBlocks._plan_range

    def counting(self, key, start, size, **options):
        planned.append(size)
        return plan_range(self, key, start, size, **options)

    monkeypatch.setattr(PlanBlocks, "_plan_range", counting)
    shuffled = np.random.default_rng(1).permutation(np.arange(20, 120))
    with local_client({"train": make_node()}) as client:
        found = client.get_batch_by_positions(shuffled, 3)
        assert planned == [100]
        assert_batches_equal(
            found, {name: array[shuffled - 20] for name, array in client.get_batch_at(20, 100, 3).items()}
        )


def test_scattered_positions_in_passes_come_in_replies_that_plan_few_blocks():
    rng = np.random.default_rng(0)
    source = ArraySource({"x": np.arange(1 << 20, dtype=np.int32)})
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), sampling="epoch", block_size=1 << 14)
    positions = rng.integers(0, 1 << 40, 40)
    node = MixDataSourcesNode(config, [source])
    with local_client({"train": node}) as client:
        request = PositionsRequest("train", positions, key_words(1), 1000)
        replies = list(
            client._caller.transport.stream(methods.STREAM_POSITIONS, encode_positions_request(request), None, 1, 1)
        )
        assert len(replies) == 5  # of 8 rows, each from a block of 16,384 positions
        assert_batches_equal(client.get_batch_by_positions(positions, 1), one_by_one(client, positions.tolist(), 1))


def test_a_few_scattered_positions_before_many_others_are_no_larger_plan(monkeypatch):
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), sampling="epoch", block_size=1 << 14)
    positions = np.concatenate([np.arange(40) << 20, np.full(5_000, 7)])
    planned = list[int]()
    plan = PlanBlocks.plan

    def counting(self, key, ranges):
        planned.append(len({start >> 14 for start, _ in ranges}))
        return plan(self, key, ranges)

    monkeypatch.setattr(PlanBlocks, "plan", counting)
    with local_client({"train": MixDataSourcesNode(config, [ArraySource({"x": np.arange(1 << 20)})])}) as client:
        found = client.get_batch_by_positions(positions, 1)["x"]
        assert max(planned) == 8  # blocks of 16,384 positions
        assert found[45:].tolist() == [client.get_batch_at(7, 1, 1)["x"][0]] * 4_995


@given(st.lists(anywhere, min_size=1, max_size=50))
def test_ranges_give_their_positions_and_are_few(positions):
    found = ranges_of(np.array(positions, np.int64))
    assert [p for start, size in found for p in range(start, start + size)] == positions
    assert all(start + size != following for (start, size), (following, _) in pairwise(found))


WRONG = [[], [[1]], 5, None, "ab", [0.5], [True], [None], [1, "x"], np.zeros((2, 2), np.int64), {1: 2}, [[1], [2, 3]]]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_what_are_no_positions(client, wrong):
    with pytest.raises(InvalidRequest, match="positions must be a list of at least one integer, got"):
        client.get_batch_by_positions(wrong, 0)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ([3, -1], InvalidRequest, "at least 0, got -1"),
        ([-(2**70)], InvalidRequest, f"at least 0, got -{2**70}"),
        ([2**63 - 1], OutOfRange, "at most 2"),
        ([2**63], OutOfRange, "at most 2"),
        ([0, 2**70], OutOfRange, "at most 2"),
        (np.array([2**64 - 1], np.uint64), OutOfRange, "at most 2"),
    ],
)
def test_positions_that_do_not_exist(client, wrong, error, message):
    with pytest.raises(error, match=message):
        client.get_batch_by_positions(wrong, 0)


def test_all_kinds_of_integers_are_positions(client):
    expected = client.get_batch_by_positions([7, 3], 1)
    for positions in ((7, 3), np.array([7, 3], np.uint8), np.array([7, 3], ">i4"), [np.int64(7), np.int32(3)]):
        assert_batches_equal(client.get_batch_by_positions(positions, 1), expected)


def message(**changes: Any) -> bytes:
    key = mix_pb2.Key(implementation="threefry2x32", words=[0, 1])
    fields = {"mixture": "train", "positions": [1], "key": key, "reply_rows": 1} | changes
    return mix_pb2.StreamPositionsRequest(**fields).SerializeToString()


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"\xff", InvalidRequest, "StreamPositionsRequest"),
        (message(positions=[]), InvalidRequest, "1 to 65536, got 0"),
        (message(positions=[0] * (POSITIONS_PER_REQUEST + 1)), InvalidRequest, "1 to 65536, got 65537"),
        (message(positions=[2, -5]), InvalidRequest, "got -5"),
        (message(positions=[2**63 - 1]), OutOfRange, "at most 2"),
        (message(key=None), InvalidRequest, "key is required"),
        (message(reply_rows=0), InvalidRequest, "reply_rows"),
        (message(content=9), InvalidRequest, "content"),
    ],
)
def test_hostile_requests_are_refused_by_the_server(server, client, data, error, text):
    transport = client._caller.transport
    with pytest.raises(error, match=text):
        list(transport.stream(methods.STREAM_POSITIONS, data, 20, 1, 1))


@given(st.binary(max_size=60))
def test_random_bytes_are_a_request_or_refused(data):
    try:
        decoded = decode_positions_request(data)
    except (InvalidRequest, OutOfRange):
        return
    assert decoded.rows >= 1


def test_a_large_reply_row_count_is_one_reply_of_the_rows_that_there_are(server):
    data = message(positions=[1, 2, 3], reply_rows=2**62)
    with MixClient.connect(server.address, shared_memory=False) as client:
        client.mixture()
        replies = list(client._caller.transport.stream(methods.STREAM_POSITIONS, data, 20, 1, 1))
    assert len(replies) == 1
