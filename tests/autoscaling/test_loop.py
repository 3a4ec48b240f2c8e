"""The loop: when it scales, what it says, and what it does about errors. And commands that scale."""

import inspect
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from mixserve.autoscaling import Policy, Seen, Thresholds, autoscale, scale_by_command
from mixserve.autoscaling import loop as loop_module
from mixserve.cli.autoscale_command import autoscale as command
from mixserve_client.errors import InvalidRequest, Unavailable

QUICK = Thresholds(up_after_s=0.02, down_after_s=0.02, settle_s=0.02, arrive_s=0.05, gone_after_s=0.05)
WAITING, QUIET = Seen(4, 0.5, 1.0, 1e6), Seen(4, 0.0, 0.0, 1e6)


class Fleet:
    """Replicas that are scaled, after the first `failures` times."""

    def __init__(self, replicas: int = 2, failures: int = 0):
        self.replicas, self.failures = replicas, failures
        self.calls, self.lines = list[int](), list[str]()
        self.ended = threading.Event()

    def scale(self, replicas: int) -> None:
        self.calls.append(replicas)
        if len(self.calls) <= self.failures:
            raise OSError("the cluster does not answer")
        self.replicas = replicas

    def run(self, see: Callable[[int], Seen], until: Callable[[], bool], scale: Callable[[int], None] | None) -> None:
        looks = 0

        def observe() -> tuple[int, Seen]:
            nonlocal looks
            looks += 1
            if until() or looks > 2000:
                self.ended.set()
            return self.replicas, see(self.replicas)

        autoscale(Policy(1, 8, QUICK), observe, scale, self.ended, every_s=0.005, say=self.lines.append)
        assert looks <= 2000, self.lines


def test_it_scales_by_the_policy_and_says_why():
    fleet = Fleet()
    fleet.run(
        lambda replicas: Seen(4, max(0.0, 1 - replicas / 4), 0.9, 1e6 * min(replicas, 4)),
        lambda: fleet.replicas == 4,
        fleet.scale,
    )
    assert fleet.calls == [4]
    assert fleet.lines[0].startswith(
        "2 replicas, 4 readers, waiting 50.0%, 0.90 replies at a time for each, 2.0 MB/s: "
    )
    assert fleet.lines[1] == "4 in place of 2 replicas: trainers wait 50.0% of their time"


def test_a_dry_run_says_each_decision_once():
    fleet = Fleet()
    looks = 0

    def see(_: int) -> Seen:
        nonlocal looks
        looks += 1
        return WAITING if looks < 60 else QUIET

    fleet.run(see, lambda: looks > 200, None)
    assert fleet.calls == []
    assert fleet.lines[1:] == [
        "would have 4 in place of 2 replicas: trainers wait 50.0% of their time",
        "would have 1 in place of 2 replicas: trainers wait 0.0% of their time, each replica makes 0 replies at a time",
    ]


def test_what_failed_is_shown_and_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop_module, "_FIRST_PAUSE_S", 0.05)
    fleet = Fleet(failures=2)
    fleet.run(lambda _: WAITING, lambda: fleet.replicas == 4, fleet.scale)
    assert fleet.calls == [4, 4, 4]
    failed = [line for line in fleet.lines if "failed" in line]
    assert len(failed) == 2
    assert failed[0].endswith("OSError: the cluster does not answer")


def test_servers_that_do_not_answer_change_nothing():
    fleet = Fleet()
    looks = 0

    def see(_: int) -> Seen:
        nonlocal looks
        looks += 1
        if looks > 10:
            raise Unavailable("connection refused")
        return QUIET

    fleet.run(see, lambda: looks > 100, fleet.scale)
    assert fleet.calls in ([], [1])  # before they ended


def test_a_command_gets_the_number_in_its_place(tmp_path: Path):
    scale_by_command(f"touch '{tmp_path}/x; {{replicas}}' {tmp_path}/$HOME")(7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["$HOME", "x; 7"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sh -c 'echo no such cluster; exit 3' {replicas}", "ended with 3: no such cluster"),
        ("false {replicas}", "ended with 1: it printed nothing"),
        ("/no/such/program {replicas}", "cannot be run"),
        ("sleep 1{replicas}", "has not ended after 0 s"),
    ],
)
def test_a_command_that_fails(line: str, said: str):
    with pytest.raises(Unavailable, match=said):
        scale_by_command(line, timeout_s=0.3)(5)


@pytest.mark.parametrize("line", ["", "kubectl scale --replicas 3", "kubectl '{replicas}"])
def test_commands_that_cannot_scale(line: str):
    with pytest.raises(InvalidRequest):
        scale_by_command(line)


def test_options_of_the_command_have_the_thresholds_of_the_policy():
    options = inspect.signature(command).parameters
    given = {one.name: options[one.name].default for one in fields(Thresholds) if one.name in options}
    assert len(given) == 7
    assert Thresholds(**given) == Thresholds()
