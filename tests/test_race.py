"""The race of `make bench`: its limits do the work that ours does, and its ratios are taken round by round."""

import importlib
from contextlib import ExitStack

import numpy as np
import pytest

from benchmarks.common import work
from benchmarks.common.spread import Spread
from benchmarks.common.targets import Row, table
from benchmarks.race import roster
from benchmarks.race.shares import shares
from benchmarks.race.summary import Rounds
from benchmarks.race.targets import earlier_rows, race_rows

GIGABYTE_OF_256 = 1e9 / (256 * work.ROW_BYTES)  # batches
BATCHES = 24  # more than a stream has in flight
DOES_THE_SAME = (roster.BARE_LOOP, roster.ONE_THREAD_MEMORY, roster.ONE_THREAD_TCP, roster.FLIGHT_PLANNED)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    from benchmarks.race.ours import node
    from mixserve import local_client

    work.write()
    with local_client({"train": node()}) as client:
        return client.get_batch_at(0, BATCHES * 8, 7)["tokens"]


@pytest.mark.parametrize("name", DOES_THE_SAME)
def test_limits_and_peers_that_do_the_same_work_deliver_the_same_rows(name, expected):
    (entry,) = [entry for entry in roster.ROSTER if entry.name == name]
    contestant = importlib.import_module(entry.module).contestant(*entry.arguments)
    with ExitStack() as stack:
        for server in contestant.servers:
            stack.enter_context(server.process)  # closes its stdin in the end, and waits for it
        for _ in range(2):  # a second stream begins again at position 0
            with contestant.open(8, 7) as batches:
                for number in range(BATCHES):
                    batch = next(batches)
                    work.accept(batch, 8)
                    rows = np.concatenate(batch) if isinstance(batch, list) else batch
                    np.testing.assert_array_equal(rows, expected[8 * number : 8 * number + 8])


def test_every_limit_is_in_the_roster_and_every_name_is_used_once():
    names = [entry.name for entry in roster.ROSTER]
    assert len(set(names)) == len(names)
    assert set(roster.LIMITS) <= set(names)


def figures(name: str, turn: int, gigabytes_s: float, cpu_s: tuple[float, float] = (0.1, 0.2)) -> dict:
    taken = {"batches": gigabytes_s * GIGABYTE_OF_256, "seconds": 1.0}
    client, server = (one * gigabytes_s for one in cpu_s)
    return {"name": name, "batch": 256, "round": turn, **taken, "client_cpu_s": client, "server_cpu_s": server}


def test_targets_are_ratios_of_the_same_round_and_their_median():
    # The machine is half as fast in the second round: the ratio of medians would be another one.
    rounds = Rounds(
        [
            *(figures(roster.TCP, turn, speed) for turn, speed in enumerate((4.0, 1.9, 3.6))),
            *(figures(roster.ONE_THREAD_TCP, turn, speed) for turn, speed in enumerate((4.0, 2.0, 5.0))),
            figures(roster.ONE_THREAD_TCP, 3, 100.0),  # a round that only one has run does not count
        ]
    )
    (row,) = [one for one in race_rows(rounds) if one.value and one.against == roster.ONE_THREAD_TCP]
    assert (row.name, row.target, row.comparison) == ("mixserve tcp, batches of 256, GB/s", 0.9, ">=")
    assert row.value == Spread(pytest.approx(0.95), pytest.approx(0.835), pytest.approx(0.975))
    assert row.met() == "yes"


def test_cpu_seconds_per_gigabyte_are_those_of_both_ends():
    rounds = Rounds([figures(roster.TCP, turn, 2.0, (0.3, 0.4)) for turn in range(3)])
    (row,) = [one for one in race_rows(rounds) if one.value]
    assert row.against == "CPU s/GB"
    assert row.value.median == pytest.approx(0.7)
    assert row.met() == "**no**"


def test_a_target_without_rounds_is_not_run():
    assert {row.met() for row in (*race_rows(Rounds([])), *earlier_rows(Rounds([])))} == {"not run"}


def test_shares_have_every_limit_that_ran_and_ours_by_it():
    rounds = Rounds(
        [figures(roster.TCP, 0, 2.0), figures(roster.SOCKET, 0, 4.0), figures(roster.ONE_THREAD_TCP, 0, 2.5)]
    )
    lines = [line.split(" | ") for line in shares(rounds, [256]) if line.startswith("| ")]
    rows = {cells[0].removeprefix("| ").strip(): cells for cells in lines}
    column = lines[0].index(f"{roster.TCP} / it")
    assert rows[roster.SOCKET][column] == "0.500 (0.500 to 0.500)"
    assert rows[roster.ONE_THREAD_TCP][column] == "0.800 (0.800 to 0.800)"
    assert rows[roster.TCP][1].startswith("2.00")
    assert roster.FLIGHT not in rows


@pytest.mark.parametrize(("comparison", "at", "met"), [("<", 0.5, "**no**"), ("<=", 0.5, "yes"), (">=", 0.5, "yes")])
def test_a_value_that_equals_its_target(comparison, at, met):
    row = Row("waiting", "%", comparison, 0.5, Spread(at, at, at))
    assert row.met() == met
    assert table([row])[-1].endswith(f"| {met} |")
