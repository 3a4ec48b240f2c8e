"""The sessions that a client holds: renewed from one thread for as long as the client lives, let go at its end."""

import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from mixserve_client.errors import MixserveError
from mixserve_client.forks import PerProcess
from mixserve_client.rpc.resources import Resources
from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.schema.sessions import HELD_LIMIT, HeldSession
from mixserve_client.wire import methods
from mixserve_client.wire.session import encode_held

_logger = logging.getLogger("mixserve_client")
_RELEASE_S = 2.0
_IDLE_S = 3600.0
_JOIN_S = 5.0
# However short a lease the server names: the thread is there to renew leases, not to keep a processor busy.
_LEAST_EVERY_S = 0.1


class LeaseKeeper:
    """Safe to use from many threads. It holds none of the objects that use it."""

    def __init__(self, caller: RetryingCaller):
        self._caller = caller
        self._held: dict[HeldSession, float] = {}
        self._lock = threading.RLock()  # a session may be collected, and removed, wherever this thread is
        self._abandoned: set[HeldSession] = set()
        self._changed: SimpleQueue[None] = SimpleQueue()  # no event: its lock may be held where a client is collected
        self._closed = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def add(self, held: HeldSession, ttl_s: float) -> None:
        """Renew this one, which ends after `ttl_s` seconds of silence."""
        with self._lock:
            self._held[held] = ttl_s
            self._start()
        self._changed.put(None)

    def remove(self, held: HeldSession) -> None:
        """Stop renewing it. Does nothing in a forked process, where another thread may have held the lock."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._held.pop(held, None)

    def release(self, *held: HeldSession, deadline: float | None = None) -> None:
        """Let others have these sessions. Returns at the deadline, and after 2 s at the latest: the leases of a server
        that does not answer end by themselves.

        A forked process releases nothing: the sessions are its parent's.
        """
        if os.getpid() != self._pid:
            return
        for session in held:
            self.remove(session)
        until = time.monotonic() + _RELEASE_S
        try:
            self._tell(methods.RELEASE_SESSIONS, held, until if deadline is None else min(until, deadline))
        except MixserveError as error:
            _logger.info("sessions were not let go, and end when their leases do: %s", error)

    def abandon(self, held: HeldSession) -> None:
        """Release a session in the background, for a caller who has no time left."""
        with self._lock:
            if self._closed:
                return
            self._held.pop(held, None)
            self._abandoned.add(held)
            self._start()
        self._changed.put(None)

    def settle(self, mixture: str, name: str, deadline: float | None) -> None:
        """Release now what was abandoned of that session, so that it can be opened again."""
        with self._lock:
            left = [held for held in self._abandoned if (held.mixture, held.name) == (mixture, name)]
        if left:
            self.release(*left, deadline=deadline)

    def close(self) -> None:
        """Let go of all, and end the thread."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            held, self._closed = [*self._held, *self._abandoned], True
        self._changed.put(None)
        if held:
            self.release(*held)

    def join(self) -> None:
        """Wait a while for the thread to end."""
        if os.getpid() == self._pid and self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="mixserve-leases", daemon=True)
            self._thread.start()

    def _renew(self) -> None:
        due = math.inf
        while not self._closed:
            with self._lock:
                held, ttl_s = list(self._held), min(self._held.values(), default=_IDLE_S)
                abandoned = list(self._abandoned)
            if abandoned:
                self.release(*abandoned)
                with self._lock:
                    self._abandoned.difference_update(abandoned)
                continue
            every_s = max(_LEAST_EVERY_S, ttl_s / 3)
            now = time.monotonic()
            due = min(due, now + every_s)  # sessions that are opened meanwhile put nothing off
            with suppress(Empty):
                self._changed.get(timeout=min(max(0.0, due - now), _IDLE_S))
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


# Those of a client and its sessions, in the process that they are used in.
SharedLeases = PerProcess[LeaseKeeper]


def leases_of(resources: Resources) -> SharedLeases:
    """LeaseKeeper that are let go of before the resources of the same process end."""

    def make() -> LeaseKeeper:
        here = resources.here
        leases = LeaseKeeper(here.caller)
        here.close_first(leases)
        return leases

    return SharedLeases(make)
