"""The sessions that a client holds: renewed from one thread for as long as the client lives, let go at its end."""

import logging
import math
import os
import threading
import time
from collections.abc import Sequence

from mixserve_client.errors import MixserveError
from mixserve_client.retry import PatientCaller
from mixserve_client.wire import methods
from mixserve_client.wire.session import HELD_LIMIT, HeldSession, encode_held

_logger = logging.getLogger("mixserve_client")
_RELEASE_S = 2.0
_IDLE_S = 3600.0
_JOIN_S = 5.0
# However short a lease the server names: the thread is there to renew leases, not to keep a processor busy.
_LEAST_EVERY_S = 0.1


class Leases:
    """Safe to use from many threads. It holds none of the objects that use it."""

    def __init__(self, caller: PatientCaller):
        self._caller = caller
        self._held: dict[HeldSession, float] = {}
        self._lock = threading.RLock()  # a session may be collected, and removed, wherever this thread is
        self._changed = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def add(self, held: HeldSession, ttl_s: float) -> None:
        """Renew this one, which ends after `ttl_s` seconds of silence."""
        with self._lock:
            self._held[held] = ttl_s
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="mixserve-leases", daemon=True)
                self._thread.start()
        self._changed.set()

    def remove(self, held: HeldSession) -> None:
        """Renew it no more."""
        with self._lock:
            self._held.pop(held, None)

    def release(self, *held: HeldSession) -> None:
        """Let others have these sessions. A server that does not answer soon will find out by itself.

        What a process holds is not let go by one that was forked off.
        """
        if os.getpid() != self._pid:
            return
        for session in held:
            self.remove(session)
        try:
            self._tell(methods.RELEASE_SESSIONS, held, time.monotonic() + _RELEASE_S)
        except MixserveError as error:
            _logger.info("sessions were not let go, and end when their leases do: %s", error)

    def close(self) -> None:
        """Let go of all, and end the thread."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            held, self._closed = list(self._held), True
        self._changed.set()
        if held:
            self.release(*held)

    def join(self) -> None:
        """Wait a while for the thread to end."""
        if os.getpid() == self._pid and self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    def _renew(self) -> None:
        due = math.inf
        while not self._closed:
            with self._lock:
                held, ttl_s = list(self._held), min(self._held.values(), default=_IDLE_S)
            every_s = max(_LEAST_EVERY_S, ttl_s / 3)
            now = time.monotonic()
            due = min(due, now + every_s)  # sessions that are opened meanwhile put nothing off
            if self._changed.wait(min(max(0.0, due - now), _IDLE_S)):
                self._changed.clear()
                continue
            if time.monotonic() < due:
                continue
            due = time.monotonic() + every_s
            try:
                self._tell(methods.RENEW_SESSIONS, held, due)
            except MixserveError as error:
                _logger.info("leases were not renewed, and will be tried again: %s", error)

    def _tell(self, method: str, held: Sequence[HeldSession], deadline: float) -> None:
        """One request for every thousand sessions; the first that fails raises what it raised."""
        for begin in range(0, len(held), HELD_LIMIT):
            self._caller.call(method, encode_held(held[begin : begin + HELD_LIMIT]), deadline)
