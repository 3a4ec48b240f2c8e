"""Deadlines: the time of `time.monotonic()` at which a call ends, whatever it waits for."""

import time

from mixserve_client.schema.checks import check_seconds

_LONGEST_WAIT_S = 1e6  # threads cannot wait longer


def deadline_in(timeout_s: float | None) -> float | None:
    """The time of `time.monotonic()` at which a call with this timeout ends. Raises InvalidRequest."""
    return None if timeout_s is None else time.monotonic() + check_seconds("timeout_s", timeout_s)


def wait_s(deadline: float) -> float:
    """How long a thread may wait until `deadline`: from 0 up to what locks and queues can wait for."""
    return max(0.0, min(deadline - time.monotonic(), _LONGEST_WAIT_S))
