"""Deadlines: times of `time.monotonic()` at which a call ends, whatever it is waiting for."""

import time

from mixserve_client.schema.checks import check_seconds

# Below threading.TIMEOUT_MAX of every platform: locks and queues raise OverflowError for longer waits.
_LONGEST_WAIT_S = 1e6


def deadline_in(timeout_s: float | None) -> float | None:
    """The time at which a call that starts now with this timeout ends, None for None. Raises InvalidRequest."""
    return None if timeout_s is None else time.monotonic() + check_seconds("timeout_s", timeout_s)


def wait_s(deadline: float) -> float:
    """Seconds from now until `deadline`, at least 0 and at most what locks and queues can wait."""
    return max(0.0, min(deadline - time.monotonic(), _LONGEST_WAIT_S))
