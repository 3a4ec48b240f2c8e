"""How many records of each source a prefix holds, compared with exact fractions, for any weights and changes."""

from fractions import Fraction
from itertools import accumulate

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixserve.mixture.counts import Counts
from mixserve.mixture.schedule import Entry, Schedule, normalised
from tests.profiles import examples

POSITION_LIMIT = 2**63 - 1

weight = st.one_of(st.just(0.0), st.floats(1e-6, 1.0), st.sampled_from([1e-6, 1e-3, 1.0]))


def weights_of(count: int) -> st.SearchStrategy[list[float]]:
    return st.lists(weight, min_size=count, max_size=count).filter(any)


@st.composite
def schedules(draw: st.DrawFn, most: int, sources: int = 40) -> Schedule:
    """Up to `most` entries, random ones or a few that repeat, at multiples of a block."""
    count, block = draw(st.integers(1, sources)), draw(st.sampled_from([1, 7, 64, 2048]))
    returning = draw(st.lists(weights_of(count), min_size=1, max_size=4))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    entries = draw(st.integers(1, most))
    starts = [0, *accumulate(block * lengths[i % len(lengths)] for i in range(entries - 1))]
    return Schedule(tuple(Entry(s, normalised(returning[i % len(returning)])) for i, s in enumerate(starts)))


def exact(schedule: Schedule, n: int) -> list[Fraction]:
    """The share of each source in the first `n` positions, from the same integer weights."""
    total = [Fraction(0)] * len(schedule.entries[0].shares)
    for entry, first, stop in schedule.parts(0, n):
        weights = [max(1, round(share * 2**32)) if share > 0 else 0 for share in entry.shares]
        total = [t + Fraction((stop - first) * w, sum(weights)) for t, w in zip(total, weights, strict=True)]
    return total


@settings(max_examples=examples(60), deadline=None)
@given(schedule=schedules(most=12), start=st.integers(0, 3000))
def test_counts_step_by_one_and_sum_to_the_positions(schedule, start):
    counts = Counts(schedule)
    assert counts.at(0).tolist() == [0] * len(schedule.entries[0].shares)
    before = counts.at(start)
    for n in range(start + 1, start + 100):
        now = counts.at(n)
        steps = now - before
        assert now.sum() == n
        assert steps.min() >= 0
        (source,) = np.flatnonzero(steps)
        (entry, _, _), *_ = schedule.parts(n - 1, n)
        assert entry.shares[source] > 0
        before = now


@settings(max_examples=examples(60), deadline=None)
@given(schedule=schedules(most=1), n=st.integers(0, POSITION_LIMIT))
@example(schedule=Schedule((Entry(0, normalised([0.001] * 39 + [0.961])),)), n=490)
@example(schedule=Schedule((Entry(0, normalised([1.0, 0.0])),)), n=POSITION_LIMIT)
def test_any_prefix_is_close_to_the_exact_shares(schedule, n):
    found = Counts(schedule).at(n)
    sources = len(found)
    assert all(abs(int(f) - e) < sources / 2 + 1 for f, e in zip(found, exact(schedule, n), strict=True))
    assert all(abs(int(f) - e) < 20 for f, e in zip(found, exact(schedule, n), strict=True))


# If only the last source shares with both others, floors that restart drift by 0.1 at every second change.
_DRIFTING = [Entry(i * 7, normalised([0.1, 0.9, 0.0] if i % 2 else [0.1, 0.0, 0.9])) for i in range(1000)]


@settings(max_examples=examples(80), deadline=None)
@given(schedule=schedules(most=1000))
@example(schedule=Schedule(tuple(_DRIFTING)))
def test_sources_stay_close_to_their_shares_however_often_weights_change(schedule):
    counts, total = Counts(schedule), [0] * len(schedule.entries[0].shares)
    ends = [entry.start for entry in schedule.entries[1:]] + [schedule.entries[-1].start + 5000]
    for entry, end in zip(schedule.entries, ends, strict=True):
        weights = [max(1, round(share * 2**32)) if share > 0 else 0 for share in entry.shares]
        total = [t + (((end - entry.start) * w) << 64) // sum(weights) for t, w in zip(total, weights, strict=True)]
        found = counts.at(end).tolist()
        assert all(abs((f << 64) - t) < 20 << 64 for f, t in zip(found, total, strict=True))


@settings(max_examples=examples(100), deadline=None)
@given(schedule=schedules(most=6, sources=8), records=st.integers(1, 500), data=st.data())
def test_the_longest_prefix_is_computed(schedule, records, data):
    source = data.draw(st.integers(0, len(schedule.entries[0].shares) - 1))
    counts = Counts(schedule)
    n = counts.longest(source, records)
    if n is None:
        assert counts.at(POSITION_LIMIT)[source] <= records
    else:
        assert counts.at(n)[source] <= records
        assert counts.at(n + 1)[source] > records


def test_a_schedule_that_is_extended_keeps_what_was_before():
    first = Schedule((Entry(0, normalised([1, 2, 3])), Entry(640, normalised([3, 2, 1]))))
    longer = first.followed_by([Entry(1280, normalised([0, 1, 0]))])
    for n in (0, 1, 639, 640, 1000, 1279, 1280):
        assert Counts(first).at(n).tolist() == Counts(longer).at(n).tolist()


@settings(max_examples=examples(50), deadline=None)
@given(schedule=schedules(most=12), n=st.integers(0, 30_000))
def test_counts_that_take_over_what_they_share_are_the_same(schedule, n):
    known: Counts | None = None
    for entries in range(1, len(schedule.entries) + 1):
        known = Counts(Schedule(schedule.entries[:entries]), known)
    assert known is not None
    assert known.at(n).tolist() == Counts(schedule).at(n).tolist()


EXACTLY_THERE = [Entry(0, normalised([1, 0])), Entry(2, normalised([1, 1])), Entry(3, normalised([1, 0]))]


@settings(max_examples=examples(100), deadline=None)
@given(schedule=schedules(most=4, sources=8), lengths=st.lists(st.integers(1, 400), min_size=8, max_size=8))
@example(Schedule(EXACTLY_THERE), [3, 1])  # the last record of a source comes right before the last entry
def test_the_end_is_where_the_first_or_all_are_exhausted(schedule, lengths):
    counts = Counts(schedule)
    lengths = lengths[: len(schedule.entries[0].shares)]
    for of_all in (False, True):
        try:
            end = counts.end(lengths, of_all=of_all)
        except ValueError:
            starts = [entry.start for entry in schedule.entries]
            ends = [Counts(Schedule(schedule.entries[:n])) for n in range(1, len(starts))]
            assert any(ended(ends[n], lengths, starts[n + 1], of_all) for n in range(len(starts) - 1))
            continue
        weighted = [share > 0 for share in schedule.entries[-1].shares]
        start = schedule.entries[-1].start
        exhausted = (counts.at(start) >= lengths)[weighted]
        assert end > start or (exhausted.all() if of_all else exhausted.any())
        within = [counts.at(n) <= lengths for n in (end, end + 1)]
        if of_all:
            assert within[0][weighted].any() or end == start
            assert not within[1][weighted].any()
        else:
            assert within[0].all()
            assert not within[1].all()


def ended(counts: Counts, lengths: list[int], position: int, of_all: bool) -> bool:
    """Whether a mixture without the later entries would end at or before `position`."""
    try:
        return counts.end(lengths, of_all=of_all) <= position
    except ValueError:
        return True
