"""Waiting for what another thread or process does, up to a deadline."""

import time
from collections.abc import Callable

from tests.processes import DEADLINE_S

_LOOK_EVERY_S = 0.005


def wait_until(is_so: Callable[[], object], what: str, seconds: float = DEADLINE_S) -> float:
    """Wait until `is_so()` is true; returns how many seconds it took.

    `what` is what is waited for. Raises AssertionError, which says that it did not come, after `seconds`.
    """
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < seconds, f"this did not come within {seconds:g} s: {what}"
        time.sleep(_LOOK_EVERY_S)
    return time.monotonic() - began
