"""The thread that looks at waits, and at its owner now and then: a new wait does not wait for the owner's time."""

import threading
import time

from mixserve_client.rpc.watch import Watch
from tests.waiting import wait_until

FAR_S = 60.0


class Owner:
    """Has nothing to do for a minute."""

    def __init__(self) -> None:
        self.looks = 0

    def look(self, now: float) -> float:
        self.looks += 1
        return now + FAR_S


class Wait:
    def __init__(self) -> None:
        self.seen = threading.Event()

    def look(self, now: float) -> None:
        self.seen.set()


def test_a_wait_is_looked_at_although_the_owner_has_time():
    owner = Owner()
    watch = Watch(owner)
    try:
        watch.need(0.2)
        watch.look_at(time.monotonic())
        wait_until(lambda: owner.looks, "the owner is looked at")
        for _ in range(3):
            wait_until(lambda: watch._sleeps_until > time.monotonic() + FAR_S / 2, "the thread sleeps until its time")
            wait = Wait()
            watch.add(wait)
            assert wait.seen.wait(FAR_S / 6)
            watch.remove(wait)
        assert owner.looks == 1
    finally:
        watch.close()
