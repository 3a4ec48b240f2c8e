"""The iterator's next requests, compared with a list of all positions: no server, no thread."""

import threading
from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixserve_client.reading.ranges import PositionList, Shard, StridedRange, batches_ahead, reply_batches
from mixserve_client.reading.skips import Skips
from mixserve_client.reading.window import Fetch, Window

SHARDS = st.builds(
    lambda size, shards, shard, workers, worker: Shard(size, (shard % shards, shards), (worker % workers, workers)),
    st.integers(1, 9),
    *(st.integers(1, 5), st.integers(0, 4)) * 2,
).filter(lambda shard: shard.shard[1] <= shard.batch_size)
SKIPS = st.lists(st.tuples(st.integers(0, 150), st.integers(1, 20)), max_size=8).map(
    lambda pairs: Skips.of([(start, start + size) for start, size in pairs])
)
WINDOWS = st.builds(
    Window,
    shard=SHARDS,
    skips=SKIPS,
    stop=st.integers(0, 200),
    drop_remainder=st.booleans(),
    # Batch sizes in bytes such that a reply holds many batches, a few, or one.
    row_bytes=st.sampled_from([1, 1 << 12, 1 << 17, 1 << 20, 1 << 24]),
    prefetch=st.integers(0, 5),
)


def rows_of(part: StridedRange | PositionList) -> Iterator[list[int]]:
    """The positions of each batch of a part."""
    if isinstance(part, PositionList):
        yield part.positions.tolist()
        return
    for number in range(part.count):
        start = part.start + number * part.stride
        yield list(range(start, start + part.size))


def batches_of(fetch: Fetch) -> list[list[int]]:
    if not fetch.parts:
        return [[]] * fetch.count
    batches = [list(rows_of(part)) for part in fetch.parts]
    if len(batches) == 1:
        return batches[0]
    assert all(len(one) == 1 for one in batches)
    return [[row for one in batches for row in one[0]]]


def all_batches(window: Window, start: int) -> list[list[int]]:
    """The batches of the window's share from `start` on, computed position by position."""
    left_out = {position for begin, end in window.skips.ranges for position in range(begin, end)}
    kept = [position for position in range(start, window.stop) if position not in left_out]
    (shard, shards), (worker, workers), size = window.shard.shard, window.shard.worker, window.shard.batch_size
    found = list[list[int]]()
    for group in range(0, len(kept), size * workers):
        batch = kept[group + worker * size : group + (worker + 1) * size]
        batch = batch[: len(kept) - group - worker * size]
        if not batch or (window.drop_remainder and len(batch) < size):
            break
        found.append(batch[shard * len(batch) // shards : (shard + 1) * len(batch) // shards])
    return found


@given(WINDOWS, st.integers(0, 160), st.data())
def test_all_batches_are_asked_for_once_and_in_order(window, start, data):
    threads, expected = threading.active_count(), all_batches(window, start)
    found, idle = list[list[int]](), True
    while True:
        in_flight = 0 if idle else data.draw(st.integers(0, 1))
        early = data.draw(st.booleans())
        fetches = window.fetches(start, in_flight, idle=idle, at_least=in_flight + 1, early=early)
        if not fetches:
            break
        for fetch in fetches:
            assert fetch.count >= 1
            assert fetch.end > start
            start = fetch.end
            found += batches_of(fetch)
        idle = data.draw(st.booleans())
    assert found == expected
    assert threading.active_count() == threads


@given(WINDOWS, st.integers(0, 160), st.integers(0, 5000), st.booleans(), st.booleans())
def test_no_more_is_asked_for_than_there_is_room_for(window, start, in_flight, idle, early):
    most = batches_ahead(window.shard.rows * window.row_bytes, window.prefetch)
    fetches = window.fetches(start, in_flight, idle=idle, early=early)
    again = window.fetches(start, in_flight, idle=idle, early=early)
    assert [(*map(tuple, batches_of(one)), one.end) for one in fetches] == [
        (*map(tuple, batches_of(one)), one.end) for one in again
    ]
    at_most = most - 1 if early else window.refill_at()
    if in_flight > at_most:
        assert not fetches
    elif early:  # a trainer that is slow makes a request all the same, if there is something to ask for
        assert bool(fetches) == bool(window.fetches(start, 0, idle=True, at_least=1))
    for fetch in fetches:
        assert in_flight <= at_most
        in_flight += fetch.count * fetch.streams_per_batch
        assert fetch.streams_per_batch == max(1, len(fetch.parts)) <= 4
        assert in_flight <= most + 3
    if fetches and idle:
        assert fetches[0].count == 1  # the reader waits for it, so it is requested alone


@given(WINDOWS, st.integers(0, 160), st.integers(0, 7))
def test_replies_of_many_batches_begin_at_the_same_places_for_all_readers(window, start, in_flight):
    fetches = window.fetches(start, in_flight, idle=False, at_least=8, early=in_flight > 0)
    for fetch in fetches:
        if fetch.count == 1 or not fetch.parts:
            continue
        (span,) = fetch.parts
        per_reply = reply_batches(window.shard.rows * window.row_bytes)
        first = (fetch.end // window.shard.group) - fetch.count
        assert first % per_reply == 0 or first // per_reply == (first + fetch.count - 1) // per_reply
        assert span.stride == window.shard.group


def test_a_batch_of_few_pieces_is_asked_for_by_pieces_and_one_of_many_by_positions():
    shard = Shard(12, (0, 1), (0, 1))
    few = Window(shard, Skips.of([(4, 5), (9, 10)]), 100, drop_remainder=False, row_bytes=8, prefetch=1)
    (fetch, *_) = few.fetches(0, 0, idle=True)
    assert [(part.start, part.size) for part in fetch.parts if isinstance(part, StridedRange)] == [
        (0, 4),
        (5, 4),
        (10, 4),
    ]
    many = Window(shard, Skips.of([(at, at + 1) for at in range(1, 20, 2)]), 100, False, 8, 1)
    (fetch, *_) = many.fetches(0, 0, idle=True)
    (positions,) = fetch.parts
    assert isinstance(positions, PositionList)
    assert np.array_equal(positions.positions, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21])
    assert fetch.end == 22


def test_the_last_batch_says_that_it_is_short_and_that_the_end_cut_it():
    window = Window(Shard(8, (0, 1), (1, 2)), Skips(), 29, drop_remainder=False, row_bytes=8, prefetch=9)
    *_, last = window.fetches(0, 0, idle=False)
    assert (last.cut, last.short, last.end) == (True, True, 29)
    assert Window(Shard(8, (0, 1), (1, 2)), Skips(), 24, False, 8, 9).fetches(16, 0, idle=False) == []
