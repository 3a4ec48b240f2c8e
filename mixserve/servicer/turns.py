"""A semaphore that lets threads pass each other, but none of them for long."""

import threading
import time
from collections import deque

# Whoever releases a turn and wants it again takes it before a waiting thread has woken up, and that is cheap. A stream
# whose reader takes replies at once would keep all others waiting for ever, though.
_PASSED_S = 0.01


class Turns:
    """A context manager that `count` threads may be in at a time; safe to use from many threads."""

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
            while not self._taken(waiter):
                pass
        except BaseException:  # Ctrl-C in the thread that waits
            with self._lock:
                if waiter.has_turn:
                    self._pass_on()
                else:
                    self._waiting.remove(waiter)
            raise

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._pass_on()

    def _taken(self, waiter: "_Waiter") -> bool:
        """Wait until the waiter is woken; whether it has a turn then."""
        waiter.wait()
        with self._lock:
            waiter.is_woken = False
            if not waiter.has_turn and self._free:
                self._free -= 1
                self._waiting.remove(waiter)
                waiter.has_turn = True
            if self._free and self._waiting:
                self._waiting[0].wake()
            return waiter.has_turn

    def _pass_on(self) -> None:
        if self._waiting and time.monotonic() - self._waiting[0].since > _PASSED_S:
            waiter = self._waiting.popleft()
            waiter.has_turn = True
            waiter.wake()
            return
        self._free += 1
        if self._waiting:
            self._waiting[0].wake()


class _Waiter:
    """A thread that waits. All but `wait` is used under the lock of its turns."""

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
        if not self.is_woken:
            self.is_woken = True
            self._gate.release()
