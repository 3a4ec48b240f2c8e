"""The arithmetic of the server's statistics, against counting one by one."""

import threading
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as TheirHistogram

from mixserve.metrics.clients import OTHER, ClientNames, Readers
from mixserve.metrics.journal import Journal
from mixserve.metrics.replies import MixtureFigures, ReplyNotes, Times
from mixserve.metrics.requested import Requested
from mixserve.mixture.schedule import Entry, Schedule, normalised
from mixserve_client.schema.histogram import SECONDS, Histogram
from mixserve_client.schema.positions import ranges_of
from mixserve_client.schema.requests import Sender


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    starts=st.lists(st.integers(1, 300), unique=True, max_size=8),
    positions=st.lists(st.integers(0, 400), min_size=1, max_size=60),
    weights=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=9, max_size=9),
)
def test_requested_records_are_the_sums_of_shares(starts, positions, weights):
    entries = [
        Entry(start, normalised([float(a), float(b)]))
        for start, (a, b) in zip([0, *sorted(starts)], weights, strict=False)
    ]
    schedule = Schedule(entries)
    wanted = sum(np.array(schedule.at(position)[0].shares) for position in positions)
    for ranges in (ranges_of(np.array(positions)), [(position, 1) for position in positions]):
        requested = Requested(np.array, 2)
        requested.add(schedule, ranges, len(positions))
        np.testing.assert_allclose(requested.records, wanted)


def test_weights_that_change_at_each_position_cost_a_bounded_number_of_steps():
    schedule = Schedule([Entry(at, normalised([1.0, float(at % 7)])) for at in range(5000)])
    for ranges in ([(0, 5000)], [(at, 1) for at in range(5000)]):
        requested = Requested(np.array, 2)
        requested.add(schedule, ranges, 5000)
        assert requested.records.sum() == pytest.approx(5000)


@given(st.lists(st.one_of(st.floats(0, 100), st.sampled_from(SECONDS)), max_size=50))
def test_a_histogram_counts_as_that_of_prometheus(values):
    ours, theirs = Histogram(), TheirHistogram("x", "x", buckets=SECONDS, registry=CollectorRegistry())
    ours.add(values)
    for value in values:
        theirs.observe(value)
    wanted = {sample.labels["le"]: sample.value for sample in theirs.collect()[0].samples if sample.name == "x_bucket"}
    sample = ours.sample(())
    assert np.cumsum(sample.counts).tolist() == list(wanted.values())
    assert sample.value == pytest.approx(sum(values))


def test_a_journal_of_many_threads_loses_nothing():
    added = list[int]()
    journal = Journal[int](added.extend, most=7)
    threads = [threading.Thread(target=lambda: [journal.note(at) for at in range(5000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.add_up()
    assert sorted(added) == sorted(list(range(5000)) * 8)


class Made(NamedTuple):
    """A reply that was made."""

    leaf_ids: np.ndarray
    times: Times | None

    def take_times(self) -> Times | None:
        return self.times


SCHEDULES = (
    Schedule([Entry(0, normalised([1.0, 3.0]))]),
    Schedule([Entry(0, normalised([1.0, 1.0])), Entry(50, normalised([0.0, 1.0]))]),
)


@pytest.mark.parametrize("leaves", [1, 2, 16, 17])
@given(data=st.data())
def test_notes_of_replies_are_added_up_as_if_one_by_one(leaves, data):
    names = ClientNames()
    figures = MixtureFigures([str(leaf) for leaf in range(leaves)], lambda shares: np.resize(shares, leaves), names)
    records, nbytes, clients = np.zeros(leaves, int), np.zeros(leaves, int), Counter[str]()
    made, sent, count, requested = list[float](), list[float](), 0, np.zeros(leaves)
    for _ in range(data.draw(st.integers(0, 6))):
        client, row_bytes = data.draw(st.sampled_from("abc")), data.draw(st.sampled_from([4, 9]))
        schedule = data.draw(st.sampled_from(SCHEDULES))
        reader = figures.readers.note_request(Sender(client), "key")
        notes = ReplyNotes(figures, reader, row_bytes, schedule)
        for start in data.draw(st.lists(st.integers(0, 90), max_size=5)):
            ids = data.draw(st.lists(st.integers(0, leaves - 1), min_size=1, max_size=9))
            times = data.draw(st.sampled_from([None, (0.5, 1.0, 2.0)]))
            notes.note(Made(np.array(ids, np.int32), times), [(start, len(ids))])
            if data.draw(st.booleans()):  # the last one may be cut off
                notes.sent_s = data.draw(st.sampled_from([0.25, 3.0]))
                sent.append(notes.sent_s)
            np.add.at(records, ids, 1)
            np.add.at(nbytes, ids, row_bytes)
            for position in range(start, start + len(ids)):
                requested += np.resize(schedule.at(position)[0].shares, leaves)
            clients[client] += len(ids)
            made += [] if times is None else [sum(times)]
            count += 1
        notes.end()
        if data.draw(st.booleans()):
            figures.add_up()
            assert figures.count == count
    figures.add_up()
    assert figures.count == count
    assert figures.records.tolist() == records.tolist()
    assert figures.bytes.tolist() == nbytes.tolist()
    assert figures.readers.records() == clients
    np.testing.assert_allclose(figures.requested.records, requested)
    for histogram, values in ((figures.made, made), (figures.stages["send"], sent)):
        sample = histogram.sample(())
        assert sum(sample.counts) == len(values)
        assert sample.value == pytest.approx(sum(values))


def test_notes_keep_the_leaves_of_at_most_a_million_rows():
    for rows in (8, 4096, 5000, 65_536):
        figures = MixtureFigures(["a"], lambda _: np.ones(1), ClientNames())
        notes = ReplyNotes(figures, figures.readers.note_request(Sender("c"), "key"), 4, SCHEDULES[0])
        most = 0
        for count in range(1, 2000):
            notes.note(Made(np.zeros(rows, np.int32), (0.5, 1.0, 2.0)), [(0, rows)])
            assert count - figures.count < 256
            assert (count - figures.count) * rows < 1 << 20
            most = max(most, count - figures.count)
        assert most > 10  # to add up takes as long for one as for many
        figures.add_up()
        assert figures.records.tolist() == [1999 * rows]


def test_the_name_of_a_client_that_goes_on_asking_is_not_given_to_another_one():
    clock = Clock()
    names = ClientNames(clock, most=1)
    readers = Readers(names, clock)
    for _ in range(40):
        assert readers.note_request(Sender("a"), "key").client == "a"
        assert readers.note_request(Sender("b"), "key").client == OTHER
        clock.now += 30


def test_strangers_names_are_counted_as_others():
    clock = Clock()
    names = ClientNames(clock, most=3)
    readers = Readers(names, clock)
    for name in ("a", "b", "c", "d"):
        reader = readers.note_request(Sender(name), "key")
        readers.add_records(reader.client, 10)
    assert readers.records() == {"a": 10, "b": 10, "c": 10, OTHER: 10}
    clock.now += 700  # "d" may take the place of "a", whose records count as others' from then on
    readers.add_records(readers.note_request(Sender("d"), "key").client, 1)
    assert readers.records() == {"b": 10, "c": 10, "d": 1, OTHER: 20}


def test_readers_are_bounded_and_forgotten():
    clock = Clock()
    readers = Readers(ClientNames(clock), clock, most=4)
    for number in range(10):
        readers.note_request(Sender("a", number), "key")
    assert len(readers.active()) == 4
    clock.now += 61
    assert readers.active() == []


def test_how_far_readers_of_a_stream_are_apart():
    clock = Clock()
    readers = Readers(ClientNames(clock), clock)
    for number, key, position in ((1, "x", 100), (2, "x", 900), (3, "y", 5000), (4, "y", 5100)):
        readers.note_request(Sender("a", number), key).position = position
    assert readers.apart() == 800
    clock.now += 59
    readers.note_request(Sender("a", 1), "x")
    clock.now += 2  # the second reader of "x" has gone
    assert readers.apart() == 0
