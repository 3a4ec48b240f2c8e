"""A fork waits for threads that are inside the gate, and they for it."""

import threading
import time

import pytest

from mixserve.sources.fork_gate import ForkGate
from tests.forked import in_a_fork

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")

GATE = ForkGate()  # one for all tests: hooks of forks stay


def test_a_fork_waits_until_a_thread_has_left():
    entered, steps = threading.Event(), list[str]()

    def stay() -> None:
        with GATE.no_fork():
            entered.set()
            while not GATE._forks:
                time.sleep(0.001)
            steps.append("left")

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(10)

    def enter() -> list[str]:
        with GATE.no_fork():
            return steps

    assert in_a_fork(enter) == "['left']"
    thread.join(10)
    with GATE.no_fork():
        assert GATE._inside == 1


def test_a_thread_that_stays_delays_a_fork_by_a_second_only(monkeypatch):
    monkeypatch.setattr("mixserve.sources.fork_gate._WAIT_S", 0.05)
    with GATE.no_fork():
        assert in_a_fork(lambda: GATE._inside) == "0"
        assert GATE._inside == 1
    assert GATE._inside == 0
