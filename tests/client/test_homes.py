"""Where readers stay, and when they move: by the numbers of readers that replicas tell."""

import random
from collections import Counter
from typing import Any

import pytest

from mixserve_client.rpc.homes import Homes
from mixserve_client.rpc.replica import Asked, Attempt, Replica
from mixserve_client.schema.requests import Sender
from mixserve_client.schema.server import Load

READER, CALLS = Sender("client", 7), Sender("client")


class Server:
    """What a replica is asked for here: its name, and its load."""

    def __init__(self, name: str, load: Load | None):
        self.name, self.load = name, load


def replicas(*loads: Load | None) -> list[Replica]:
    return [Replica(Server(str(number), load)) for number, load in enumerate(loads)]  # pyright: ignore


def ask(one: Replica, reader: Sender | None, leaves: bool, at: float = 0.0) -> None:
    server: Any = one.transport
    if reader is not None and server.load is not None:
        server.load = Load(server.load.readers + (-1 if leaves else 1), server.load.reply_s)
    one.note_load(server.load, at)


def moved(seed: int, loads: tuple[Load, ...], home: int = 0) -> int:
    """The replica at which a reader stays that looked once."""
    homes, all_ = Homes(random.Random(seed)), replicas(*loads)
    homes.choose(READER, [all_[home]], 0.0, again=False)
    homes.look(all_, ask, lambda: 0.0)
    return all_.index(homes.choose(READER, all_, 0.0, again=False))


def test_a_reader_stays_where_it_is_whatever_waits_are():
    homes, all_ = Homes(random.Random(0)), replicas(Load(2, 0.02), Load(2, 0.02), Load(1, 0.01))
    for one in all_:
        ask(one, None, False)
    home = homes.choose(READER, all_, 0.0, again=False)
    for step in range(100):
        now = step * 0.1
        home.note_wait(0.04 + step % 3 * 0.02, now)
        attempt = Attempt(home, Asked("stream", b""))
        attempt.open(object())  # pyright: ignore
        assert homes.choose(READER, all_, now, again=False) is home
        homes.look(all_, ask, lambda now=now: now)


@pytest.mark.parametrize(
    ("here", "there", "expected"), [(2, 1, 0), (3, 2, 0), (3, 1, 1), (2, 0, 1), (6, 0, 3), (100, 90, 0), (100, 60, 20)]
)
def test_about_half_of_the_readers_that_are_too_many_move_at_a_time(here, there, expected):
    runs = 2000
    share = sum(moved(seed, (Load(here, 0.01), Load(there, 0.01))) == 1 for seed in range(runs)) / runs
    assert share * here == pytest.approx(expected, abs=0.05 + here * 0.03)


def test_those_that_have_moved_count_at_once():
    """The readers of one replica look one after another: no more go than should."""
    found = Counter[int]()
    for seed in range(50):
        all_ = replicas(Load(8, 0.01), *[Load(0, 0.0)] * 3)
        each = [Homes(random.Random(seed * 8 + number)) for number in range(8)]
        for homes in each:
            homes.choose(READER, all_[:1], 0.0, again=False)
        for _ in range(40):
            for homes in each:
                homes.look(all_, ask, lambda: 0.0)
        found.update(one.transport.load.readers for one in all_)  # pyright: ignore
    assert set(found) <= {1, 2, 3}
    assert found[2] >= 150


def test_a_server_that_tells_nothing_is_chosen_by_waits_as_before():
    homes, all_ = Homes(random.Random(0)), replicas(None, None)
    for one in all_:
        ask(one, None, False)
    first = homes.choose(READER, all_, 0.0, again=False)
    first.note_wait(0.03, 0.0)
    second = homes.choose(READER, all_, 0.0, again=False)
    assert second is not first
    second.note_wait(0.06, 0.0)
    assert homes.choose(READER, all_, 0.0, again=False) is first


@pytest.mark.parametrize("load", [Load(1, 0.002), Load(0, 0.0), None])
def test_a_slow_replica_is_left_and_one_that_stood_still_is_not(load):
    wait_s = 0.3 if load is None else 0.1
    homes, all_ = Homes(random.Random(0)), replicas(Load(1, 0.002), load)
    for one in all_:
        ask(one, None, False)
    all_[1].tells = True
    home = homes.choose(READER, all_[:1], 0.0, again=False)
    for step in range(100):
        home.note_wait(0.002, step * 0.01)
    if load is not None:
        home.note_wait(0.2, 1.0)  # once
        assert homes.choose(READER, all_, 1.0, again=False) is home
        for step in range(20):
            home.note_wait(0.002, 1 + step * 0.01)
    for step in range(6):
        home.note_wait(wait_s, 2 + step * wait_s)
    assert homes.choose(READER, all_, 3.0, again=False) is all_[1]
    # Nor does it come back because few readers are there, as long as it is slow.
    all_[0].transport.load = Load(0, 0.1)  # pyright: ignore
    all_[1].transport.load = Load(3, 0.002)  # pyright: ignore
    for step in range(50):
        homes.look(all_, lambda *asked: ask(*asked, at=3.0), lambda step=step: 3.0 + step * 0.1)
    assert homes.choose(READER, all_, 8.0, again=False) is all_[1]


def test_readers_look_again_when_another_replica_is_back():
    homes, all_ = Homes(random.Random(0)), replicas(Load(2, 0.01), Load(0, 0.0))
    homes.choose(READER, all_[:1], 0.0, again=False)
    homes.look(all_[:1], ask, lambda: 0.0)
    assert homes.look_at
    for _ in range(20):
        homes.look(all_, ask, lambda: 0.0)
    assert homes.choose(READER, all_, 0.0, again=False) is all_[1]


def test_a_replica_that_does_not_answer_gets_no_readers():
    homes, all_ = Homes(random.Random(0)), replicas(Load(9, 0.01), Load(0, 0.0))
    homes.choose(READER, all_[:1], 0.0, again=False)

    def lost(one: Replica, reader: Sender | None, leaves: bool) -> None:
        ask(one, reader, leaves)
        if one is all_[1] and reader is not None:
            one.load = None

    for _ in range(20):
        homes.look(all_, lost, lambda: 0.0)
    assert homes.choose(READER, all_, 0.0, again=False) is all_[0]


def test_a_server_that_is_replaced_by_a_newer_one_is_asked_again():
    (one,) = replicas(None)
    ask(one, None, False, at=100.0)
    assert not one.may_tell(159.0)
    assert one.may_tell(160.0)


def test_calls_beside_each_other_go_to_several_replicas():
    homes, all_ = Homes(random.Random(0)), replicas(Load(1, 0.0), Load(1, 0.0))
    for one in all_:
        ask(one, None, False)
    home = homes.choose(CALLS, all_, 0.0, again=False)
    assert {homes.choose(CALLS, all_, 0.0, again=False) for _ in range(5)} == {home}
    home.calls = 1
    assert homes.choose(CALLS, all_, 0.0, again=False) is not home
    home.calls = 0
    assert homes.choose(CALLS, all_, 0.0, again=False) is home


def test_a_reader_comes_back_after_another_replica_had_to_answer_once():
    homes, all_ = Homes(random.Random(0)), replicas(Load(1, 0.0), Load(1, 0.0))
    home = homes.choose(READER, all_, 0.0, again=False)
    other = next(one for one in all_ if one is not home)
    assert homes.choose(READER, [other], 0.0, again=True) is other
    assert homes.choose(READER, all_, 0.0, again=False) is home
    assert homes.choose(READER, [other], 0.0, again=False) is other  # it is out
    assert homes.choose(READER, all_, 0.0, again=False) is other


def test_readers_that_are_gone_are_forgotten_and_then_nobody_is_asked():
    homes, all_, asked, at = Homes(random.Random(0)), replicas(Load(1, 0.0), Load(1, 0.0)), list[float](), [0.0]
    homes.choose(READER, all_, at[0], again=False)

    def note(*arguments: Any) -> None:
        asked.append(at[0])
        ask(*arguments)

    while homes.look_at:
        at[0] = homes.look_at
        homes.look(all_, note, lambda: at[0])
    assert 120 < at[0] < 130
    # Each of both in 4 to 8 s while nothing changes.
    assert 2 * 60 / 8 < sum(60 < one <= 120 for one in asked) < 2 * 60 / 4
