"""Which part of its time a trainer waits: the arithmetic, with times that a test makes up."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve_client.metrics.wait_share import WaitShare

_STEPS = st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), min_size=1, max_size=30)
BEGIN = 1000.0


def started(at: float = BEGIN) -> WaitShare:
    """One whose first batch came at that time, after a wait of 100 s."""
    waits = WaitShare()
    waits.since = at - 100
    waits.leave(at - 100, at)
    return waits


def after(waits: WaitShare, steps: list[tuple[float, float]], now: float = BEGIN) -> float:
    """The time after these steps: each works, then waits for the next batch."""
    for worked_s, waited_s in steps:
        now += worked_s
        waits.since = now
        waits.leave(now, now + waited_s)
        now += waited_s
    return now


@given(_STEPS)
def test_it_is_a_share(steps):
    waits = started()
    now = after(waits, steps)
    share = waits.at(now + 1)
    assert share is not None
    assert 0 <= share <= 1
    assert waits.waited_s == pytest.approx(sum(waited_s for _, waited_s in steps), abs=1e-9)


@given(st.floats(0.001, 5), st.floats(0.001, 5), st.integers(1, 200))
def test_a_steady_trainer_has_its_share_at_each_step(worked_s, waited_s, steps):
    waits, now = started(), BEGIN
    for _ in range(steps):
        now = after(waits, [(worked_s, waited_s)], now)
        share = waits.at(now)
        assert share is None or share == pytest.approx(waited_s / (worked_s + waited_s), rel=1e-6, abs=1e-9)


@given(_STEPS, st.floats(0, 1))
def test_who_never_waits_has_0_and_who_only_waits_has_1(steps, moment):
    working, waiting = started(), started()
    now = after(working, [(worked_s, 0.0) for worked_s, _ in steps])
    assert working.at(now + 1) == 0
    now = after(waiting, [(0.0, waited_s) for _, waited_s in steps])
    waiting.since = now
    assert waiting.at(now + 1 + moment) == pytest.approx(1)  # also in the middle of a wait


@given(_STEPS, st.floats(0.2, 100), st.floats(0, 1))
def test_more_waiting_is_a_larger_share(steps, lasts_s, part):
    shares = list[float]()
    for waited_s in (part * lasts_s * 0.5, part * lasts_s):
        waits = started()
        now = after(waits, steps)
        waits.at(now)
        now = after(waits, [(lasts_s - waited_s, waited_s)], now)
        shares.append(waits.at(now) or 0.0)
    assert shares[0] <= shares[1] + 1e-9


@given(st.floats(0.2, 120))
def test_what_was_fades_in_half_a_minute_or_so(later_s):
    waits = started()
    now = after(waits, [(0.0, 1000.0)])
    assert waits.at(now) == 1
    # Of a trainer that has always waited, and waits no more: its share falls by a factor e in 15 s.
    assert waits.at(now + later_s) == pytest.approx(math.exp(-later_s / 15), rel=1e-6)


@given(st.lists(st.floats(0.2, 30), min_size=1, max_size=20), st.data())
def test_it_is_the_integral_of_waiting_with_fading_weights(lasts, data):
    """Asked after each stretch, in which the trainer waits for all of it or not at all."""
    stretches = [(lasts_s, data.draw(st.booleans())) for lasts_s in lasts]
    waits, now, came = started(), BEGIN, None
    for lasts_s, is_waiting in stretches:
        if is_waiting and came is None:
            waits.since = now
            came = now
        elif not is_waiting and came is not None:
            waits.leave(came, now)
            came = None
        now += lasts_s
        share = waits.at(now)
    waited, lasted, at = 0.0, 0.0, BEGIN
    for lasts_s, is_waiting in stretches:
        weight = math.exp((at + lasts_s - now) / 15) - math.exp((at - now) / 15)
        waited, lasted, at = waited + weight * is_waiting, lasted + weight, at + lasts_s
    assert share == pytest.approx(waited / lasted, rel=1e-6, abs=1e-9)


def test_start_up_is_no_hunger():
    waits = started()
    assert waits.waited_s == 0
    assert waits.started_s == 100
    assert waits.at(BEGIN) is None  # nothing is known yet
    now = after(waits, [(1.0, 0.0)] * 10)
    assert waits.at(now) == 0
    # A restore is another start, and what was known before holds meanwhile.
    waits.restart(now)
    now += 50
    waits.since = now
    assert waits.at(now + 30) == 0
    waits.leave(now, now + 40)
    assert (waits.waited_s, waits.started_s) == (0, 140)
    assert waits.at(now + 41) == 0
    # An error in a start-up does not end it.
    waits.restart(now + 41)
    waits.since = now + 50
    waits.give_up(now + 50, now + 60)
    assert (waits.waited_s, waits.started_s) == (0, 150)
    waits.since = now + 60
    waits.leave(now + 60, now + 61)
    assert (waits.waited_s, waits.started_s) == (0, 151)
    # Later errors count as waiting.
    waits.since = now + 62
    waits.give_up(now + 62, now + 65)
    assert waits.waited_s == 3


def test_callers_that_wait_at_once_make_no_share_above_1():
    waits = started()
    for at in range(10):
        waits.since = BEGIN + at
        waits.since = BEGIN + at
        waits.leave(BEGIN + at, BEGIN + at + 1)
        waits.leave(BEGIN + at, BEGIN + at + 1)
        share = waits.at(BEGIN + at + 1)
        assert share is not None
        assert share <= 1
