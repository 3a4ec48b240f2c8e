"""Calls that are repeated until a server answers: right for pure calls only."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from mixserve_client.errors import DeadlineExceeded, InvalidRequest, Unavailable
from mixserve_client.transport import Transport

_logger = logging.getLogger("mixserve_client")
_LOG_AFTER_S = 5.0
_FOREVER_S = 1e8  # beyond this gRPC's clocks overflow
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 2.0


class PatientCaller:
    """Sends a request to the first of `transports` that answers, for up to `patience_s` seconds of silence."""

    def __init__(self, transports: Sequence[Transport], patience_s: float):
        if not transports:
            raise InvalidRequest("at least one server address is needed, got none")
        self._transports = tuple(transports)
        self._patience_s = seconds("patience_s", patience_s)
        self._current = 0
        self._closed = threading.Event()

    @property
    def transport(self) -> Transport:
        """The transport that is in use; another one takes its place when its server falls silent."""
        return self._transports[self._current]

    def call(self, method: str, request: bytes, deadline: float | None = None) -> bytes:
        """The reply to `request`; `deadline` is a time of `time.monotonic()`.

        Raises Unavailable when patience runs out, DeadlineExceeded at the deadline, and at once whatever else a
        server answers.
        """
        first_failure, failures, logged = 0.0, 0, False
        while True:
            current = self._current
            try:
                return self._transports[current].call(method, request, _remaining_s(deadline))
            except Unavailable as error:
                now = time.monotonic()
                first_failure = first_failure or now
                failures += 1
                silent_s = now - first_failure
                if self._closed.is_set():
                    raise
                if silent_s >= self._patience_s:
                    raise Unavailable(f"no server answered for {silent_s:.1f} s (patience_s); last: {error}") from error
                if silent_s >= _LOG_AFTER_S and not logged:
                    _logger.warning("still waiting for a server, up to %.0f s: %s", self._patience_s, error)
                    logged = True
                self._current = (current + 1) % len(self._transports)
                rounds, place = divmod(failures, len(self._transports))
                delay_s = min(_FIRST_DELAY_S * 2 ** min(rounds - 1, 10), _LONGEST_DELAY_S) if place == 0 else 0.0
                self._closed.wait(_within(deadline, delay_s, error))

    def close(self) -> None:
        """End the calls under way, those that wait for a server too."""
        self._closed.set()
        for transport in self._transports:
            transport.close()


def seconds(name: str, value: Any) -> float:
    """`value` as a positive number of seconds. Raises InvalidRequest."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0:
        raise InvalidRequest(f"{name} must be a positive number of seconds, got {value!r}")
    return number


def deadline_in(timeout_s: float | None) -> float | None:
    """The time of `time.monotonic()` at which a call with this timeout ends. Raises InvalidRequest."""
    return None if timeout_s is None else time.monotonic() + seconds("timeout_s", timeout_s)


def _remaining_s(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise DeadlineExceeded("timeout_s ran out before the request could be sent; allow more time")
    return None if remaining_s > _FOREVER_S else remaining_s


def _within(deadline: float | None, delay_s: float, error: Unavailable) -> float:
    if deadline is not None and time.monotonic() + delay_s >= deadline:
        raise DeadlineExceeded(f"timeout_s ran out while no server answered; last: {error}") from error
    return delay_s
