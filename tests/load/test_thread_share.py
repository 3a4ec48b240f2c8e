"""How the threads of a pool are shared out among mixtures, with threads that really wait."""

import threading
import time
from collections.abc import Callable

import pytest

from mixserve.access.identity import EVERYBODY, acting_as
from mixserve.servicer.jobs import Abandoned
from mixserve.servicer.thread_share import ThreadShare
from mixserve_client import Overloaded
from tests.load.hanging import until


def make_share(threads: int = 6, limit: int = 4, mixtures: int = 3, room: int = 0) -> ThreadShare:
    return ThreadShare(threads, limit, [f"m{i}" for i in range(mixtures)], {}, room=room)


class Waiting(threading.Thread):
    """Enters the share for a mixture in a thread; `order` gets its name then. Leaves when told to."""

    def __init__(self, share: ThreadShare, mixture: str, order: list[str], name: str):
        super().__init__(name=name, daemon=True)
        self.error: Exception | None = None
        self.leave = threading.Event()
        self._share, self._mixture, self._order = share, mixture, order
        self.start()

    def run(self) -> None:
        try:
            with self._share.work(self._mixture):
                self._order.append(self.name)
                self.leave.wait()
        except Exception as error:
            self.error = error


def least_s(call: Callable[[], object], error: type[Exception]) -> float:
    """The shortest of three times until `call` raises that error: a busy machine may delay one."""
    took = list[float]()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(error):
            call()
        took.append(time.monotonic() - began)
    return min(took)


def test_one_thread_is_left_for_each_mixture_that_has_none():
    share = make_share(threads=6, limit=6)
    for _ in range(4):
        share.enter("m0")
    with pytest.raises(Overloaded, match="4 calls of the mixture 'm0' are under way"):
        share.enter("m0")
    first, second = share.enter("m1"), share.enter("m2")
    with pytest.raises(Overloaded):
        share.enter("m1")
    share.leave("m1", first)
    share.leave("m2", second)
    assert share.refused == 2


def test_no_more_than_a_third_is_left_for_others():
    share = make_share(threads=6, limit=6, mixtures=100)
    for _ in range(4):
        share.enter("m0")
    with pytest.raises(Overloaded):
        share.enter("m0")


def test_a_lone_mixture_may_have_all():
    share = make_share(threads=4, limit=4, mixtures=1)
    for _ in range(4):
        share.enter("m0")
    assert share.held("m0") == 4


def test_calls_wait_in_the_order_in_which_they_came():
    share, order = make_share(threads=8, limit=1, mixtures=2, room=4), list[str]()
    first = Waiting(share, "m0", order, "0")
    until(lambda: order == ["0"])
    others = list[Waiting]()
    for i in range(1, 4):
        others.append(Waiting(share, "m0", order, str(i)))
        until(lambda i=i: share.held("m0") == i + 1)
    for one in [first, *others]:
        before = len(order)
        one.leave.set()
        until(lambda before=before: len(order) == min(before + 1, 4))
    assert order == ["0", "1", "2", "3"]
    until(lambda: share.held("m0") == 0)


def test_nobody_waits_for_a_mixture_of_which_nothing_ends():
    share, order = make_share(threads=8, limit=1, mixtures=2, room=4), list[str]()
    hanging = Waiting(share, "m0", order, "0")
    until(lambda: order == ["0"])
    waiting = Waiting(share, "m0", order, "1")
    waiting.join(10)
    assert isinstance(waiting.error, Overloaded)
    assert least_s(lambda: share.enter("m0"), Overloaded) < 0.5
    hanging.leave.set()
    until(lambda: share.held("m0") == 0)
    share.leave("m0", share.enter("m0"))


def test_a_caller_that_goes_waits_no_longer():
    share = make_share(threads=8, limit=1, mixtures=2, room=4)
    since = share.enter("m0")
    with acting_as(EVERYBODY, is_wanted=lambda: False):
        assert least_s(lambda: share.enter("m0"), Abandoned) < 0.9
    assert share.held("m0") == 1
    share.leave("m0", since)
    assert share.held("m0") == 0


def test_refused_callers_are_told_to_come_back_one_after_another():
    share = make_share(threads=4, limit=2, mixtures=2)
    for _ in range(20):  # calls of about 20 ms
        since = share.enter("m0")
        time.sleep(0.02)
        share.leave("m0", since)
    share.enter("m0")
    share.enter("m0")
    delays = list[float]()
    for _ in range(200):
        with pytest.raises(Overloaded) as caught:
            share.enter("m0")
        delays.append(caught.value.retry_after_s)
    assert len(set(delays)) > 100  # they are spread
    assert min(delays) < 0.1
    assert 0.5 < sum(delays[-50:]) / 50 <= 5.0  # about 200 calls of 10 ms, as two run at a time
    assert max(delays) <= 6.25
