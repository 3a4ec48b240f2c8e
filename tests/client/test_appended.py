"""Appendable sequences behave like tuples and share their prefixes; appending costs the same at any length."""

import pickle
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve_client.appended import BLOCK, Appended
from mixserve_client.reading.schedule import Schedule
from mixserve_client.reading.skips import Skips
from mixserve_client.schema.mixture import Limits, MixtureDescription, SourceDescription
from tests.profiles import examples


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.lists(st.integers(), max_size=3)), max_size=20))
def test_they_are_like_tuples(steps):
    check_steps(steps)


# Around the borders of blocks.
counts = st.integers(0, 3) | st.integers(BLOCK - 2, BLOCK + 2) | st.integers(2 * BLOCK - 2, 2 * BLOCK + 2)


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), counts, counts), max_size=8))
def test_they_are_like_tuples_in_several_blocks(steps):
    """Also from the middle of a block that another view has filled since."""
    check_steps([(which, most * length, list(range(more))) for which, length, most, more in steps])


def check_steps(steps: list[tuple[int, int, list[int]]]) -> None:
    """Each step continues a prefix of a known sequence."""
    known: list[tuple[tuple[int, ...], Appended[int]]] = [((), Appended())]
    for which, length, more in steps:
        plain, grown = known[which % len(known)]
        known.append(((*plain[:length], *more), grown[:length].followed_by(more)))
    for plain, grown in known:
        assert tuple(grown) == plain
        assert len(grown) == len(plain)
        places = {i for i in range(-len(plain), len(plain)) if i % BLOCK in (0, 1, 5, BLOCK - 1)} | {
            *range(len(plain))[-3:]
        }
        assert [grown[i] for i in places] == [plain[i] for i in places]
        assert tuple(grown[1:-1]) == plain[1:-1]
        assert tuple(grown[::-2]) == plain[::-2]
        assert pickle.loads(pickle.dumps(grown)) == grown
        for other, grown_too in known:
            assert (grown == grown_too) == (plain == other)
            shared = grown.shared_with(grown_too)
            assert plain[:shared] == other[:shared]
            assert sum(length for _, length in grown.blocks()) == len(plain)
            if plain == other:
                assert hash(grown) == hash(grown_too)
        with pytest.raises(IndexError):
            _ = grown[len(plain)]


def seconds(task: Callable[[], object]) -> float:
    """The least time of several tries: other processes on the machine only make a try longer."""
    tries = list[float]()
    for _ in range(7):
        began = time.perf_counter()
        task()
        tries.append(time.perf_counter() - began)
    return min(tries)


def test_views_that_branch_off_share_what_comes_before():
    """However many: each has a block of its own, at most, and knows what it shares without a look at each item."""

    class Counted:
        looks = 0

        def __eq__(self, other: object) -> bool:
            Counted.looks += 1
            return self is other

        __hash__ = None  # type: ignore[assignment]

    items = [Counted() for _ in range(100 * BLOCK + 7)]
    whole = Appended(items)
    grown = whole.followed_by([Counted()])
    branches = [whole.followed_by([Counted()]) for _ in range(50)]
    blocks = {name for view in branches for name, _ in view.blocks()}
    assert len(blocks) == 100 + 50
    assert all(grown.shared_with(branch) == len(items) for branch in branches)
    assert Counted.looks == 0


@pytest.mark.alone
def test_an_entry_more_costs_the_same_at_any_length():
    mixture = MixtureDescription(
        name="train",
        fingerprint="00" * 32,
        fields=(),
        sources=(SourceDescription("a", 10, 0.5), SourceDescription("b", 10, 0.5)),
        limits=Limits(1, 1),
        placement="host",
        sampling="categorical",
    )

    def costs(entries: int) -> tuple[float, ...]:
        schedule = Schedule.of(mixture, [(2 * i, (0.5, 0.5)) for i in range(entries)])
        skips = Skips.of([(2 * i, 2 * i + 1) for i in range(entries)])
        _ = schedule.plain, skips.plain
        end = [2 * entries]

        def change() -> None:
            nonlocal schedule
            for _ in range(100):
                end[0] += 2
                schedule = schedule.with_weights(end[0], (0.3, 0.7))

        def leave_out() -> None:
            nonlocal skips
            for _ in range(100):
                end[0] += 2
                skips |= Skips.of([(end[0], end[0] + 1)])

        def ask() -> None:
            for _ in range(100):
                _ = schedule.plain, skips.plain, schedule.id

        found = seconds(change), seconds(leave_out)
        _ = schedule.plain, skips.plain
        return *found, seconds(ask)

    for few, many in zip(costs(100), costs(100_000), strict=True):
        assert many < 10 * few + 1e-4, (few, many)  # it once was 300 times as much
