"""Turns: never more at a time than allowed, none lost, and no wait without end."""

import threading
import time

import pytest

from mixserve.servicer.turns import Turns

DEADLINE_S = 60


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_more_than_allowed_at_a_time_and_none_is_lost(count):
    turns, lock, inside, most, done = Turns(count), threading.Lock(), [0], [0], [0]

    def work() -> None:
        for _ in range(300):
            with turns:
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(0)
                with lock:
                    inside[0] -= 1
                    done[0] += 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert done[0] == 8 * 300
    assert most[0] <= count
    for _ in range(count):  # all are free again
        turns.__enter__()


def test_a_thread_that_takes_its_turn_again_and_again_lets_others_in():
    turns, stop, came = Turns(1), threading.Event(), threading.Event()

    def greedy() -> None:
        while not stop.is_set():
            with turns:
                end = time.perf_counter() + 0.005
                while time.perf_counter() < end:
                    pass

    threads = [threading.Thread(target=greedy, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            waiting = threading.Thread(target=lambda: (turns.__enter__(), came.set(), turns.__exit__()), daemon=True)
            waiting.start()
            assert came.wait(5)
            came.clear()
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)


def test_a_turn_is_passed_on_if_the_thread_that_waits_for_it_is_interrupted(monkeypatch):
    turns = Turns(1)
    turns.__enter__()

    class Interrupted(BaseException):
        pass

    def interrupted(_: object) -> bool:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(turns, "_wait_for_turn", interrupted)
        with pytest.raises(Interrupted):
            turns.__enter__()
    turns.__exit__()
    with turns:
        pass
