"""The policy, by what it saw: bounds, steps, holds, and that it settles."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.autoscaling import Decision, Policy, Seen, Thresholds
from mixserve_client.errors import InvalidRequest
from tests.profiles import examples

EVERY_S = 5.0
GOOD = Seen(4, 0.0, 0.1, 1e6)


def decisions(
    policy: Policy, replicas: int, see: Callable[[int], Seen], until_s: float, every_s: float = EVERY_S
) -> Iterator[tuple[float, int, Decision]]:
    """What is decided when each decision is followed at once; with the time, and how many there were."""
    for turn in range(int(until_s / every_s)):
        decision = policy.decide(turn * every_s, replicas, see(replicas))
        yield turn * every_s, replicas, decision
        replicas = decision.replicas or replicas


def numbers(
    policy: Policy, replicas: int, see: Callable[[int], Seen], until_s: float, every_s: float = EVERY_S
) -> list[int]:
    """The numbers of replicas, one after another."""
    found = [replicas]
    for _, _, decision in decisions(policy, replicas, see, until_s, every_s):
        if decision.replicas != found[-1]:
            found.append(decision.replicas)
    return found


def fluid(need: float, readers: int = 8) -> Callable[[int], Seen]:
    """Replicas that serve one reply at a time, of which trainers need so many."""

    def see(replicas: int) -> Seen:
        share = max(0.0, 1 - replicas / need)
        return Seen(readers, share, min(1.0, need / replicas), min(need, replicas) * 1e6)

    return see


def test_more_by_what_trainers_lack_at_most_twice_as_many():
    assert numbers(Policy(1, 16), 1, fluid(5.5), 3600) == [1, 2, 4, 6]
    assert numbers(Policy(1, 16), 5, fluid(5.5), 3600) == [5, 6]
    assert numbers(Policy(1, 4), 1, fluid(5.5), 3600) == [1, 2, 4]


def test_fewer_at_most_by_half_until_each_would_have_much_to_do():
    assert numbers(Policy(1, 16), 16, fluid(1.3), 7200) == [16, 8, 4, 2]
    assert numbers(Policy(3, 16), 16, fluid(1.3), 7200) == [16, 8, 4, 3]


def test_a_short_wait_changes_nothing():
    def see(replicas: int) -> Seen:
        nonlocal turn
        turn += 1
        return Seen(4, 0.3 if turn % 4 else 0.03, 0.9, 1e6)  # never for 15 s without a break

    turn = 0
    assert numbers(Policy(1, 8), 2, see, 3600) == [2]


def test_figures_before_a_change_has_settled_do_not_count():
    policy, changes = Policy(1, 64), list[float]()
    last = 1
    for now, _, decision in decisions(policy, 1, fluid(40), 1200):
        if decision.replicas != last:
            changes.append(now)
            last = decision.replicas
    assert last == 40
    limits = policy.thresholds
    assert all(b - a >= limits.settle_s + limits.up_after_s for a, b in pairwise(changes))


def test_replicas_that_have_not_come_are_waited_for():
    policy = Policy(1, 16)
    found = [policy.decide(now, 1, fluid(8)(1)) for now in range(0, 580, 5)]
    assert {one.replicas for one in found} == {1, 2}
    assert "1 of 2 are there" in found[-1].why


def test_fewer_are_asked_for_although_more_have_not_come():
    policy = Policy(1, 16)
    for now in range(0, 200, 5):
        found = policy.decide(now, 2, Seen(4, 0.7, 1.0, 1e6))
    assert found.replicas == 4
    for now in range(200, 700, 5):
        found = policy.decide(now, 2, Seen(4, 0.0, 0.1, 1e6))
    assert found.replicas == 1


@pytest.mark.parametrize("share", [0.08, 0.5, 1.0])
def test_more_that_do_not_help_are_taken_back_and_tried_again_rarely(share: float):
    found = numbers(Policy(1, 64), 4, lambda _: Seen(8, share, 1.0, 1e6), 3600 * 24)
    more = max(found)
    assert found == [4, *([more, 4] * (len(found) // 2))]
    assert len(found) // 2 == 6  # after 0, 30, 90, 210, 450 and 930 minutes


def test_a_wait_that_more_do_not_mend_says_so():
    policy = Policy(1, 64)
    found = [one.why for _, _, one in decisions(policy, 4, lambda _: Seen(8, 0.5, 1.0, 1e6), 600)]
    assert any(one.startswith("8 hardly helped: trainers wait 50.0% of their time, and 50.0% with 4") for one in found)
    assert "more hardly helped; they are tried again in" in found[-1]


def test_a_trainer_that_is_never_satisfied_gets_more_as_long_as_they_deliver_more():
    assert numbers(Policy(1, 8), 1, lambda replicas: Seen(8, 1.0, 9.0, replicas * 1e6), 3600) == [1, 2, 4, 8]


def test_other_readers_are_a_reason_to_try_more_again():
    policy = Policy(1, 64)
    for now, replicas, _ in decisions(policy, 4, lambda _: Seen(8, 0.5, 1.0, 1e6), 900):
        last = now, replicas
    now, replicas = last
    assert replicas == 4
    for later in range(5, 60, 5):
        found = policy.decide(now + later, 4, Seen(16, 0.5, 1.0, 1e6))
    assert found.replicas == 8


def test_fewer_that_did_not_suffice_are_not_tried_again():
    """A replica's network is full, which its busy share does not say."""

    def see(replicas: int) -> Seen:
        share = max(0.0, 1 - replicas / 3.5)
        return Seen(8, share, 0.3 * 4 / replicas, min(3.5, replicas) * 1e8)

    assert numbers(Policy(1, 16), 8, see, 3600 * 8) == [8, 4, 2, 4]


def test_replicas_with_many_cores_are_fewer_when_the_load_falls_below_what_they_have_delivered():
    def see(replicas: int) -> Seen:  # of 16 cores: busy by any measure
        return Seen(8, max(0.0, 1 - 8 * replicas / need), min(8, need / replicas), min(need, 8 * replicas) * 1e8)

    need = 30.0
    policy = Policy(1, 16)
    found = [*decisions(policy, 2, see, 1200)]
    assert found[-1][2].replicas == 4
    need = 6.0
    seen = set[int]()
    replicas = 4
    for now in range(1200, 3600, 5):
        replicas = policy.decide(now, replicas, see(replicas)).replicas
        seen.add(replicas)
    assert replicas == 1


def test_the_minimum_when_no_trainer_reads_for_a_while():
    policy = Policy(2, 16)
    for now, _, decision in decisions(policy, 12, lambda _: Seen(0), 700):
        assert decision.replicas == (12 if now < 605 else 2)


def test_readers_that_come_back_soon_find_the_same_number():
    def see(replicas: int) -> Seen:
        nonlocal turn
        turn += 1
        return Seen(0) if turn % 100 < 90 else Seen(8, 0.0, 0.6, 1e6)

    turn = 0
    assert numbers(Policy(1, 16), 8, see, 7200) == [8]


def test_replicas_that_somebody_else_added_are_kept_until_they_are_idle():
    policy = Policy(1, 16)
    for now in range(0, 100, 5):
        policy.decide(now, 2, fluid(1.9)(2))
    for now in range(100, 300, 5):
        found = policy.decide(now, 6, fluid(1.9)(6))
    assert found.replicas == 6
    for now in range(300, 700, 5):
        found = policy.decide(now, 6, fluid(1.9)(6))
    assert found.replicas == 3


def test_the_number_stays_while_a_replica_is_lost_and_the_others_suffice():
    policy = Policy(1, 16)
    for now in range(0, 100, 5):
        policy.decide(now, 4, fluid(3.5)(4))
    for now in range(100, 800, 5):
        assert policy.decide(now, 3, fluid(3.5)(3)).replicas == 4


def test_fewer_are_tried_again_if_it_was_not_for_want_of_replicas_that_trainers_waited():
    """After a step down their storage is slow for two hours, which more replicas do not mend."""
    policy, replicas, tried = Policy(1, 16), 4, list[int]()
    for now in range(0, 3600 * 3, 5):
        share = 0.4 if tried and now < 3600 * 2 else 0.0
        found = policy.decide(now, replicas, Seen(8, share, 0.2, 1e6 * (1 - share))).replicas
        if found != replicas:
            tried.append(found)
        replicas = found
    assert tried[:3] == [2, 4, 2]
    assert replicas == 1


ABSURD = [
    (0, GOOD),
    (-1, GOOD),
    (2, Seen(-1, 0.9)),
    (2, Seen(4, math.nan)),
    (2, Seen(4, -0.1)),
    (2, Seen(4, 1.5)),
    (2, Seen(4, 0.9, math.inf, 1.0)),
    (2, Seen(4, 0.9, -1.0)),
    (2, Seen(4, 0.0, 0.1, math.nan)),
    (2, Seen(4, 0.0, 0.1, 1e307)),  # whose sum is infinite
    (2, Seen(4, None, 0.0, 0.0)),
    (2, Seen(4, 0.9, 1.0, 0.0)),  # nothing is delivered at all
]


@pytest.mark.parametrize(("replicas", "seen"), ABSURD)
def test_figures_that_are_missing_or_absurd_change_nothing(replicas: int, seen: Seen):
    policy = Policy(1, 16)
    policy.decide(0.0, 4, GOOD)
    for now in range(5, 3600, 5):
        assert policy.decide(now, replicas, seen).replicas == 4


def test_one_look_without_an_answer_begins_the_quiet_time_again():
    policy = Policy(1, 16)
    for now in range(0, 3600, 5):
        lost = now % 100 == 50
        assert policy.decide(now, 0 if lost else 4, Seen(0) if lost else GOOD).replicas == 4


@pytest.mark.parametrize("given", [(0, 1), (2, 1), (-1, 3)])
def test_bounds_that_are_none(given: tuple[int, int]):
    with pytest.raises(InvalidRequest, match="at least 1"):
        Policy(*given)


@pytest.mark.parametrize(
    "given", [{"up": 0.0}, {"up": 1.0}, {"down": 0.05}, {"down": -0.1}, {"settle_s": 0.0}, {"busy": math.nan}]
)
def test_thresholds_that_contradict_each_other(given: dict[str, float]):
    with pytest.raises(InvalidRequest):
        Thresholds(**given)


shares = st.one_of(st.none(), st.floats(allow_nan=True), st.floats(0, 1), st.just(0.0), st.just(0.5))
figures = st.one_of(st.none(), st.floats(allow_nan=True), st.floats(0, 10))
anything = st.builds(Seen, st.one_of(st.integers(-2, 100), st.just(4)), shares, figures, figures)


@settings(max_examples=examples(200))
@given(
    st.integers(1, 8),
    st.integers(0, 40),
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(1, 60), anything, st.integers(1, 40), st.booleans()), max_size=40),
)
def test_whatever_is_seen_numbers_stay_in_bounds_and_steps_small(
    least: int, more: int, replicas: int, story: list[tuple[int, Seen, int, bool]]
):
    """`story`: for so many looks this is seen, so many seconds apart; whether decisions are followed meanwhile."""
    policy = Policy(least, least + more)
    now, last, changed = 0.0, None, -math.inf
    for looks, seen, seconds, follows in story:
        for _ in range(looks):
            now += seconds
            found = policy.decide(now, replicas, seen).replicas
            assert least <= found <= least + more
            if last is not None and found != last:
                assert now - changed >= policy.thresholds.settle_s
                assert found <= max(2 * replicas, replicas + 1)
                if seen.readers:
                    assert found >= min(math.ceil(replicas / 2), last)
            if found != last:
                changed = now
            last = found
            if follows:
                replicas = found


@settings(max_examples=examples(100))
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(0.01, 60),
    st.floats(0.2, 100),
    st.floats(0.05, 3),
    st.floats(0, 0.2),
    st.integers(0, 1000),
)
def test_under_any_constant_load_that_replicas_can_mend_it_settles(most, first, need, lanes, visible, noise, seed):
    """Trainers need `need` replicas, each of which makes `lanes` replies at a time, of which `visible` are seen."""
    random = Random(seed)

    def see(replicas: int) -> Seen:
        rate = min(need, replicas) * random.uniform(1 - noise / 2, 1 + noise / 2)
        share = max(0.0, 1 - replicas / need) * random.uniform(1 - noise, 1)
        return Seen(8, share, visible * lanes * min(1, need / replicas), rate * 1e6)

    changes, last = list[tuple[float, int]](), min(first, most)
    for now, _, decision in decisions(Policy(1, most), last, see, 3600 * 3, every_s=15):
        if decision.replicas != last:
            last = decision.replicas
            changes.append((now, last))
    assert len(changes) <= 2 * (math.log2(most) + 1) + 4, changes
    assert not changes or changes[-1][0] <= 3600 * 1.5, changes
    assert last >= min(most, math.floor(0.95 * need)), changes


@settings(max_examples=examples(100))
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.floats(0, 5), st.floats(0, 1e9))
def test_under_any_constant_figures_changes_become_rare(most, first, share, busy, load):
    """Whatever replicas do, trainers feel the same."""
    found = numbers(Policy(1, most), min(first, most), lambda _: Seen(8, share, busy, load), 3600 * 8, 30)
    assert len(found) - 1 <= 2 * 5 + math.log2(most) + 1, found
