"""What a reader sets for itself: its weights, its skips, and extra fields of rows; over every route."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mixserve import (
    ArraySource,
    MixDataSourcesConfig,
    MixDataSourcesNode,
    MixServer,
    RandomAccessSource,
    local_client,
    serve,
)
from mixserve.servicer import Services, replies, schedules
from mixserve_client import FingerprintMismatch, InvalidRequest, MixClient, UnknownSchedule
from mixserve_client.schema.fields import Content
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.schema.schedule import ScheduleEntry, ScheduleRequest
from mixserve_client.wire import methods
from mixserve_client.wire.batch import decode_batch
from mixserve_client.wire.request import encode_batch_request, encode_stream_request
from mixserve_client.wire.schedule import decode_schedule, encode_schedule_request
from tests.conftest import ROUTES, TRANSPORTS, assert_batches_equal, make_node

OPTIONS: dict[str, dict[str, Any]] = {
    "categorical": {},
    "epoch": {"sampling": "epoch", "block_size": 64},
    "scheduled": {"schedule": [(100, (1, 1, 1)), (1000, (0, 1, 0))]},
    "ending": {"sampling": "epoch", "block_size": 64, "stop": "all_exhausted"},
}
ENDLESS = ("categorical", "epoch", "scheduled")
NODES = {name: make_node(**options) for name, options in OPTIONS.items()}
SCHEDULE = [(128, (0.0, 0.5, 0.5)), (256, (1.0, 0.0, 0.0))]


@pytest.fixture(scope="module")
def many() -> Iterator[MixServer]:
    with serve(NODES) as running:
        yield running


@pytest.fixture(params=TRANSPORTS)
def reader(request: pytest.FixtureRequest) -> Iterator[MixClient]:
    if request.param == "in-process":
        made = local_client(NODES)
    else:
        address = request.getfixturevalue("many").address
        made = MixClient.connect(address, patience_s=20, **ROUTES[request.param])
    with made:
        yield made


def concatenate(batches: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("mixture", OPTIONS)
def test_provenance_names_the_very_records(reader, mixture):
    node = NODES[mixture]
    for start, size in ((0, 5), (60, 70), (10, 20_000)):
        if mixture == "ending" and start + size > node.mixture.planner.end:
            continue
        batch = reader.get_batch_at(start, size, 3, mixture=mixture, provenance=True)
        plan = reader.get_plan_at(start, size, 3, mixture=mixture)
        source_ids, record_ids = batch.pop("source_id"), batch.pop("record_id")
        assert (source_ids.dtype, record_ids.dtype) == (np.int32, np.int64)
        assert_batches_equal(plan, {"source_id": source_ids, "record_id": record_ids})
        assert_batches_equal(batch, reader.get_batch_at(start, size, 3, mixture=mixture))
        for source_id in np.unique(source_ids):
            here = source_ids == source_id
            taken = node.sources[source_id].take(record_ids[here])
            assert_batches_equal({name: array[here] for name, array in batch.items()}, dict(taken))


def test_provenance_needs_room_for_its_names():
    def client_of(record: Any) -> MixClient:
        source = RandomAccessSource([record] * 4)
        return local_client({"x": MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1,)), [source])})

    with pytest.raises(InvalidRequest, match=r"already have the fields \['record_id'\]"):
        client_of({"record_id": np.int32(1)}).get_batch_at(0, 1, 0, provenance=True)
    bare = client_of((np.int32(1), np.int32(2)))
    with pytest.raises(InvalidRequest, match="request it alone, with get_plan_at"):
        bare.get_batch_at(0, 1, 0, provenance=True)
    assert bare.get_plan_at(0, 3, 0)["source_id"].tolist() == [0, 0, 0]
    with pytest.raises(InvalidRequest, match=r"already have the fields \['source_id'\]"):
        client_of({"source_id": {"a": np.int32(1)}}).get_batch_at(0, 1, 0, provenance=True)
    raw = BatchRequest("x", 0, 1, np.array([0, 1], np.uint32), content=Content.RECORDS_AND_PROVENANCE)
    client = client_of({"record_id": np.int32(1)})
    with pytest.raises(InvalidRequest, match="already have the fields"):  # the server checks as well
        client._caller.call(methods.GET_BATCH_AT, encode_batch_request(raw))
    nested = client_of({"a": {"b": np.int32(1)}}).get_batch_at(0, 2, 0, provenance=True)
    assert nested["a"]["b"].tolist() == [1, 1]
    assert len(nested["record_id"]) == 2


def test_single_batches_of_many_streams_in_turns(reader):
    """The client keeps the selections of 64 of them; each has a key, a mixture, a content and a schedule of its own."""
    expected = {
        (key, mixture): reader.get_batch_by_positions(range(126, 132), np.uint32([0, key]), mixture=mixture)
        for key in range(30)
        for mixture in ENDLESS
    }
    planned = {
        (key, mixture): reader.get_plan_at(126, 6, np.uint32([0, key]), mixture=mixture, schedule=SCHEDULE)
        for key, mixture in expected
    }
    for _ in range(2):
        for (key, mixture), batch in expected.items():
            assert_batches_equal(reader.get_batch_at(126, 6, key, mixture=mixture), batch)
            plan = reader.get_plan_at(126, 6, key, mixture=mixture, schedule=SCHEDULE)
            assert_batches_equal(plan, planned[key, mixture])
            both = reader.get_batch_at(126, 6, key, mixture=mixture, provenance=True)
            assert_batches_equal({name: both[name] for name in batch}, batch)
            own = reader.get_plan_at(126, 6, key, mixture=mixture)
            assert set(own) == {"source_id", "record_id"} == set(both) - set(batch)
            assert_batches_equal({name: both[name] for name in own}, own)


@pytest.mark.parametrize("mixture", ENDLESS)
def test_a_schedule_is_the_same_by_position_and_by_iterator(reader, mixture):
    whole = reader.get_batch_at(0, 320, 3, mixture=mixture, schedule=SCHEDULE, provenance=True)
    assert (whole["source_id"][128:256] != 0).all()
    assert (whole["source_id"][256:] == 0).all()
    own = reader.get_batch_at(0, 128, 3, mixture=mixture, provenance=True)
    assert_batches_equal(own, {name: array[:128] for name, array in whole.items()})
    iterator = reader.batches(30, 3, mixture=mixture, schedule=SCHEDULE, provenance=True, stop=320)
    assert_batches_equal(concatenate(list(iterator)), whole)
    live = reader.batches(32, 3, mixture=mixture, provenance=True, stop=320)
    found = [next(live) for _ in range(4)]
    assert live.schedule_weights(SCHEDULE[0][1]) == 128
    assert live.schedule_weights({"source-0": 1, "source-1": 0, "source-2": 0}, from_position=256) == 256
    assert_batches_equal(concatenate(found + list(live)), whole)


@pytest.mark.parametrize("mixture", ENDLESS)
def test_weights_change_from_the_next_batch_whatever_was_prefetched(reader, mixture):
    iterator = reader.batches(16, 3, mixture=mixture, prefetch=8)
    for _ in range(3):
        next(iterator)
    start = iterator.schedule_weights((0, 1, 0))
    assert start == (64 if NODES[mixture].config.sampling == "epoch" else 48)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state["schedule"] == [[start, [0.0, 1.0, 0.0]]]
    after = [next(iterator) for _ in range(3)]
    again = reader.batches(48, 0, mixture=mixture)
    again.set_state(state)
    assert_batches_equal(next(again), concatenate(after))
    with pytest.raises(InvalidRequest, match="from_position must be at least 96"):
        iterator.schedule_weights((1, 1, 1), from_position=95)


def test_the_last_word_holds(reader):
    iterator = reader.batches(16, 3, mixture="categorical", stop=160)
    iterator.schedule_weights((0, 0, 1), from_position=100)
    iterator.schedule_weights((0, 1, 0), from_position=120)
    iterator.schedule_weights((1, 0, 0), from_position=110)
    assert iterator.get_state()["schedule"] == [[100, [0.0, 0.0, 1.0]], [110, [1.0, 0.0, 0.0]]]


@pytest.mark.parametrize("mixture", OPTIONS)
def test_skipped_positions_do_not_come(reader, mixture):
    skip = [(40, 70), (100, 130), (130, 131), (200, 210)]
    kept = np.array([p for p in range(320) if not any(a <= p < b for a, b in skip)])
    end = NODES[mixture].mixture.planner.end or 320
    kept, stop = kept[kept < end], min(320, end)
    whole = reader.get_batch_at(0, stop, 3, mixture=mixture)
    expected = {name: array[kept] for name, array in whole.items()}
    assert_batches_equal(concatenate(list(reader.batches(16, 3, mixture=mixture, skip=skip, stop=stop))), expected)
    shards = [list(reader.batches(16, 3, mixture=mixture, skip=skip, stop=stop, shard=(i, 3))) for i in range(3)]
    assert_batches_equal(concatenate([rows for of_batch in zip(*shards, strict=True) for rows in of_batch]), expected)
    iterator = reader.batches(16, 3, mixture=mixture, skip=skip[:1], stop=stop)
    found = [next(iterator) for _ in range(2)]
    for one in skip[1:]:
        iterator.skip(*one)
    state = iterator.get_state()
    assert state["skip"] == [[40, 70], [100, 131], [200, 210]]
    again = reader.batches(16, 0, mixture=mixture, stop=stop)
    again.set_state(state)
    assert_batches_equal(concatenate(found + list(again)), expected)
    with pytest.raises(InvalidRequest, match="the start of the next batch"):
        iterator.skip(31, 40)


def test_a_rewound_reader_can_leave_out_more(reader):
    first = reader.batches(16, 3, mixture="categorical", skip=[(16, 20)])
    state = first.get_state()
    more = reader.batches(16, 3, mixture="categorical", skip=[(0, 16)])
    more.set_state(state)
    assert more.get_state()["skip"] == [[0, 20]]
    expected = reader.get_batch_at(20, 16, 3, mixture="categorical")
    assert_batches_equal(next(more), expected)


def test_the_mixtures_end_follows_the_schedule(reader):
    only_last = [(0, (0, 0, 1))]
    assert reader.end(mixture="ending", schedule=only_last) == 30
    assert reader.end(mixture="ending") == reader.mixture("ending").end
    assert reader.end(mixture="epoch", schedule=only_last) is None
    assert reader.mixture("ending").end == max(source.pass_end for source in reader.mixture("ending").sources)
    batches = list(reader.batches(8, 3, mixture="ending", schedule=only_last, provenance=True))
    assert sorted(concatenate(batches)["record_id"].tolist()) == list(range(30))
    short = reader.get_batch_at(20, 100, 3, mixture="ending", schedule=only_last, allow_short=True)
    assert len(short["id"]) == 10


def test_weights_cannot_change_what_was_yielded_by_moving_the_end():
    sources = [ArraySource({"id": np.arange(length)}) for length in (60, 60, 10)]
    options = {"sampling": "epoch", "block_size": 64, "stop": "all_exhausted"}
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=3, weights=(0.6, 0.4, 0.0), **options), sources)
    with local_client({"train": node}) as client:
        end = client.mixture().end
        assert 128 < end < 192
        iterator = client.batches(16, 3, provenance=True)
        found = [next(iterator) for _ in range(9)]
        state = iterator.get_state()
        with pytest.raises(InvalidRequest, match=f"ends at position {end}, before its weights change at 192"):
            iterator.schedule_weights((1, 1, 1))
        assert iterator.get_state() == state
        found += list(iterator)
        assert_batches_equal(concatenate(found), client.get_batch_at(0, end, 3, provenance=True))
        # If there is time, the end moves; earlier batches stay.
        early = client.batches(16, 3, provenance=True)
        before = [next(early) for _ in range(2)]
        assert early.schedule_weights((0, 0, 1)) == 64
        whole = concatenate(before + list(early))
        assert len(whole["id"]) == 74
        assert sorted(whole["record_id"][64:]) == list(range(10))
        assert_batches_equal({name: array[:64] for name, array in whole.items()}, concatenate(found[:4]))


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
def test_an_ending_mixture_takes_a_schedule_that_its_server_never_heard_of(stop):
    node = make_node(sampling="epoch", block_size=4, stop=stop)
    schedule = [(4, (1, 1, 1)), (8, (1, 2, 1)), (12, (2, 1, 1))]
    with local_client({"train": node}) as client:
        whole = concatenate(list(client.batches(3, 3, schedule=schedule)))
        state = client.batches(3, 3, schedule=schedule).get_state()
    with local_client({"train": node}) as client:
        again = client.batches(3, 0)
        again.set_state(state)
        assert_batches_equal(concatenate(list(again)), whole)
    with local_client({"train": node}) as client:
        short = client.get_batch_at(0, 1000, 3, schedule=schedule, allow_short=True)
        assert_batches_equal(short, whole)


def test_a_server_that_forgets_is_told_again(monkeypatch):
    monkeypatch.setattr(schedules, "_SCHEDULES", 1)  # the server keeps only the last schedule
    with serve({"train": NODES["categorical"]}) as server, MixClient.connect(server.address, patience_s=20) as client:
        one, two = (client.batches(8, 3, schedule=[(at, (1, 0, 0))], prefetch=0, stop=80) for at in (16, 24))
        local = local_client({"train": NODES["categorical"]})
        expected = [local.batches(8, 3, schedule=[(at, (1, 0, 0))], stop=80) for at in (16, 24)]
        for _ in range(10):
            assert_batches_equal(next(one), next(expected[0]))
            assert_batches_equal(next(two), next(expected[1]))


def test_long_schedules_are_told_in_pieces(reader, monkeypatch):
    monkeypatch.setattr("mixserve_client.reading.schedule._WEIGHTS_AT_ONCE", 9)
    schedule = [(64 * i, (i % 3, 1, i % 2)) for i in range(20)]
    found = reader.get_batch_at(0, 1280, 3, mixture="epoch", schedule=schedule)
    parts = [reader.get_batch_at(64 * i, 64, 3, mixture="epoch", schedule=schedule[: i + 1]) for i in range(20)]
    assert_batches_equal(concatenate(parts), found)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ([(0, (1, 2))], "weights must be 3 numbers, one for each source, got 2"),
        ([(0, (0, 0, 0))], "of a positive, finite sum"),
        ([(0, (1, -1, 1))], "positive or zero"),
        ([(0, (1, float("nan"), 1))], "positive or zero"),
        ([(0, {"source-0": 1})], "weights must be a number for each of source-0, source-1, source-2"),
        ([(-1, (1, 1, 1))], "begin at a position in 0..2^63 - 2, got -1"),
        ([(2**63 - 1, (1, 1, 1))], "begin at a position"),
        ([(5, (1, 1, 1)), (5, (1, 1, 1))], r"schedule[1] must start after 5"),
        ([5], r"schedule[0] must be a pair"),
        ("ab", "schedule must be a list of pairs"),
        ([(0, "abc")], "weights must be 3 numbers"),
        ([(0, {1, 2, 3})], "weights must be 3 numbers"),
        ([(0, ("1", "1", "1"))], "weights must be 3 numbers"),
        ([(0, (True, 1, 1))], "weights must be 3 numbers"),
        ([(0, (10**400, 1, 1))], "weights must be 3 numbers"),
        ([{0, (1, 1, 1)}], r"schedule[0] must be a pair"),
    ],
)
def test_schedules_that_are_wrong(reader, schedule, said):
    for ask in (reader.get_batch_at, reader.get_plan_at):
        with pytest.raises(InvalidRequest, match=re.escape(said)):
            ask(0, 4, 0, mixture="categorical", schedule=schedule)
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        next(reader.batches(4, 0, mixture="categorical", schedule=schedule))


def test_states_with_schedules_that_are_wrong(reader):
    iterator = reader.batches(16, 3, mixture="categorical")
    state = iterator.get_state()
    for wrong in ({"schedule": [[0, [1, 2]]]}, {"schedule": 5}, {"skip": [[3, 1]]}, {"skip": "x"}, {"weights": []}):
        with pytest.raises(InvalidRequest):
            iterator.set_state(state | wrong)
    assert iterator.get_state() == state
    with pytest.raises(FingerprintMismatch):
        reader.batches(16, 3, mixture="scheduled").set_state(state)


def definition(fingerprint: str, entries: Any, parent: str = "", mixture: str = "epoch") -> bytes:
    told = tuple(ScheduleEntry(start, tuple(map(float, weights))) for start, weights in entries)
    return encode_schedule_request(ScheduleRequest(mixture, fingerprint, parent, told))


def test_definitions_on_the_wire(reader):
    fingerprint = reader.mixture("epoch").fingerprint

    def define(*args: Any, **options: Any) -> str:
        return decode_schedule(reader._caller.call(methods.DEFINE_SCHEDULE, definition(*args, **options))).id

    first = define(fingerprint, [(64, (1, 1, 1))])
    both = define(fingerprint, [(64, (1, 1, 1)), (128, (1, 2, 3))])
    assert define(fingerprint, [(128, (1, 2, 3))], first) == both
    assert define("", [(64, (1, 1, 1))]) == first
    for args, error, said in [
        (("00", [(64, (1, 1, 1))]), FingerprintMismatch, "expected '00'"),
        ((fingerprint, []), InvalidRequest, "at least one"),
        ((fingerprint, [(65, (1, 1, 1))]), InvalidRequest, "multiples of block_size = 64, got 65"),
        ((fingerprint, [(64, (1, 1))]), InvalidRequest, "weights must be 3 numbers"),
        ((fingerprint, [(64, (0, 0, 0))]), InvalidRequest, "positive, finite sum"),
        ((fingerprint, [(64, (1, float("inf"), 1))]), InvalidRequest, "finite"),
        ((fingerprint, [(-64, (1, 1, 1))]), InvalidRequest, "strictly increasing"),
        ((fingerprint, [(64, (1, 1, 1)), (64, (1, 1, 2))]), InvalidRequest, "strictly increasing"),
        ((fingerprint, [(64, (1, 1, 2))], both), InvalidRequest, "after 128, the last start of their parent"),
        ((fingerprint, [(640, (1, 1, 2))], "ab" * 32), UnknownSchedule, "define it with DefineSchedule"),
        ((fingerprint, [(640, (1, 1, 2))], "no id"), InvalidRequest, "parent must be the id of a schedule"),
    ]:
        with pytest.raises(error, match=re.escape(said)):
            define(*args)
    request = BatchRequest("epoch", 0, 4, np.array([0, 1], np.uint32), schedule="ab" * 32)
    with pytest.raises(UnknownSchedule, match="ask again"):
        reader._caller.call(methods.GET_BATCH_AT, encode_batch_request(request))
    request = BatchRequest("categorical", 0, 4, np.array([0, 1], np.uint32), schedule=first)
    with pytest.raises(UnknownSchedule):  # it belongs to another mixture
        reader._caller.call(methods.GET_BATCH_AT, encode_batch_request(request))


def test_schedules_have_a_limit_that_the_client_knows(monkeypatch):
    monkeypatch.setattr("mixserve_client.schema.schedule._MOST_WEIGHTS", 12)
    with local_client({"train": NODES["categorical"]}) as client:
        three = [(i + 1, (1, 1, 1)) for i in range(3)]
        iterator = client.batches(8, 0, schedule=three)
        next(iterator)
        state = iterator.get_state()
        with pytest.raises(InvalidRequest, match="may have up to 3 entries of 3 weights, got 4"):
            iterator.schedule_weights((1, 1, 1))
        assert iterator.get_state() == state
        next(iterator)
        told = [(i + 1, (1, 1, 1)) for i in range(4)]
        request = definition(client.mixture().fingerprint, told, mixture="train")
        with pytest.raises(InvalidRequest, match="may have up to 4 entries of 3 weights"):
            client._caller.call(methods.DEFINE_SCHEDULE, request)


def test_a_server_that_is_older_than_schedules(reader):
    described = replace(reader.mixture("categorical"), schedule=(), leaves=(), stop="")
    reader.catalog._known["categorical"] = described
    for options in ({"schedule": [(0, (1, 0, 0))]}, {"provenance": True}):
        with pytest.raises(InvalidRequest, match="this server is older than schedules and provenance"):
            reader.get_batch_at(0, 4, 0, mixture="categorical", **options)
    assert len(reader.get_batch_at(0, 4, 0, mixture="categorical")["id"]) == 4
    assert len(next(reader.batches(4, 0, mixture="categorical"))["id"]) == 4


def test_readers_of_positions_far_apart_do_not_wait_for_all_plans():
    """In epoch mode each of these rows needs a block of its own; a reply has few of them."""
    rows = 300
    words = np.array([0, 3], np.uint32)
    request = StreamRequest(BatchRequest("epoch", 0, 1, words, content=Content.PROVENANCE), 64 * 1000, rows, rows)
    servicer = Services(NODES)
    whole = [
        decode_batch(reply)[1] for reply in servicer.stream(methods.STREAM_BATCHES, encode_stream_request(request))
    ]
    node = NODES["epoch"]
    plan = node.mixture.planner.plan_each(words, np.arange(rows, dtype=np.uint64) * np.uint64(64 * 1000))
    assert np.concatenate([reply["record_id"] for reply in whole]).tolist() == plan.record_ids.tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replies, "_PLANNED_POSITIONS", 64 * 30)
        cut = [
            decode_batch(reply)[1] for reply in servicer.stream(methods.STREAM_BATCHES, encode_stream_request(request))
        ]
    assert max(len(reply["record_id"]) for reply in cut) <= 30
    assert_batches_equal(concatenate(cut), concatenate(whole))
