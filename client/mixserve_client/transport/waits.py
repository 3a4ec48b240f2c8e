"""Waits that end at a deadline, a time of `time.monotonic()`."""

import threading
import time

from mixserve_client.errors import DeadlineExceeded

LATE = "timeout_s ran out before the batch arrived; allow more time"
# Below threading.TIMEOUT_MAX of every platform: locks and queues raise OverflowError for longer waits.
_LONGEST_WAIT_S = 1e6


def wait_s(deadline: float) -> float:
    """Seconds from now until `deadline`, at least 0 and at most what locks and queues can wait."""
    return max(0.0, min(deadline - time.monotonic(), _LONGEST_WAIT_S))


def acquire(lock: threading.Lock, deadline: float | None) -> None:
    """Acquire `lock`, at the latest by `deadline` (None: no limit). Raises DeadlineExceeded."""
    if not lock.acquire(timeout=-1 if deadline is None else wait_s(deadline)):
        raise DeadlineExceeded(LATE)
