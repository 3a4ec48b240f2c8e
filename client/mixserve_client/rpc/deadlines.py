"""Deadlines: times of `time.monotonic()` at which a call ends, whatever it is waiting for."""

import time

from mixserve_client.schema.checks import check_seconds

CLOCK_S = 0.05  # gRPC measures a timeout by another clock than ours


def deadline_in(timeout_s: float | None) -> float | None:
    """The time at which a call that starts now with this timeout ends, None for None. Raises InvalidRequest."""
    return None if timeout_s is None else time.monotonic() + check_seconds("timeout_s", timeout_s)
