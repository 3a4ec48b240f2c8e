"""A semaphore that lets running threads overtake waiting ones, but not for long."""

import threading
import time
from collections import deque

# A thread that releases a turn and wants the next one takes it before a waiting thread has woken up, which saves a
# thread switch per reply. But a stream whose reader takes replies at once would then keep the turn: the first batch of
# another stream waited for 13 s. So a thread that has waited this long gets the turn directly.
_OVERTAKEN_S = 0.01


class Turns:
    """A context manager for up to `count` threads at a time."""

    def __init__(self, count: int):
        self._free = count
        self._waiting: deque[_Waiter] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            waiter = _Waiter()
            self._waiting.append(waiter)
        try:
            while not self._wait_for_turn(waiter):
                pass
        except BaseException:  # Ctrl-C in the waiting thread: a turn that it was given must not be lost
            with self._lock:
                if waiter.has_turn:
                    self._pass_on()
                else:
                    self._waiting.remove(waiter)
            raise

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._pass_on()

    def _wait_for_turn(self, waiter: "_Waiter") -> bool:
        """Wait until the waiter is woken. False if another thread was faster."""
        waiter.wait()
        with self._lock:
            waiter.is_woken = False
            if not waiter.has_turn and self._free:
                self._free -= 1
                self._waiting.remove(waiter)
                waiter.has_turn = True
            # Two turns may have been released while only the first waiter was woken.
            if self._free and self._waiting:
                self._waiting[0].wake()
            return waiter.has_turn

    def _pass_on(self) -> None:
        if self._waiting and time.monotonic() - self._waiting[0].since > _OVERTAKEN_S:
            waiter = self._waiting.popleft()
            waiter.has_turn = True
            waiter.wake()
            return
        self._free += 1
        if self._waiting:
            self._waiting[0].wake()


class _Waiter:
    """A waiting thread. Everything but `wait` needs the lock of its turns."""

    __slots__ = ("_gate", "has_turn", "is_woken", "since")

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.has_turn = self.is_woken = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait(self) -> None:
        """Wait until the next `wake`."""
        self._gate.acquire()

    def wake(self) -> None:
        if not self.is_woken:  # releasing an open gate is a RuntimeError
            self.is_woken = True
            self._gate.release()
