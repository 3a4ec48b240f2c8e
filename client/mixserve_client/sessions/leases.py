"""Renews the leases of a client's sessions in one thread, and releases them when the client closes."""

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
from mixserve_client.limited_log import LimitedLog
from mixserve_client.rpc.resources import Resources
from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.schema.sessions import HELD_LIMIT, HeldSession
from mixserve_client.wire import methods
from mixserve_client.wire.session import encode_held

_logger = logging.getLogger("mixserve_client")
_UNTOLD = LimitedLog(_logger)
_RELEASE_S = 2.0  # how long `close` waits for a server that does not answer
_IDLE_S = 3600.0
_JOIN_S = 5.0
# Even if a server grants shorter leases: renewing them must not keep a core busy.
_LEAST_EVERY_S = 0.1


class LeaseKeeper:
    """Renews and releases leases. Safe to use from many threads.

    It has no references to sessions or clients, so its thread does not keep them alive.
    """

    def __init__(self, caller: RetryingCaller):
        self._caller = caller
        self._held: dict[HeldSession, float] = {}
        # Reentrant: the collector may finalize a session, and so call `remove`, while the same thread has the lock.
        self._lock = threading.RLock()
        self._abandoned: set[HeldSession] = set()
        # Not an Event, whose lock is not reentrant: the collector may finalize a client while this thread holds it.
        self._changed: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def add(self, held: HeldSession, ttl_s: float) -> None:
        """Renew this session's lease from now on; the server ends it after `ttl_s` seconds without a renewal."""
        with self._lock:
            self._held[held] = ttl_s
            self._start()
        self._changed.put(None)

    def remove(self, held: HeldSession) -> None:
        """Stop renewing its lease. Does nothing in a forked process, where another thread may have held the lock."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._held.pop(held, None)

    def release(self, *held: HeldSession, deadline: float | None = None) -> None:
        """Release these sessions, so that other clients can open them.

        Returns at the deadline, or after 2 s if that is earlier: if the server does not answer, the leases expire by
        themselves. Does nothing in a forked process, since the sessions are its parent's.
        """
        if os.getpid() != self._pid:
            return
        for session in held:
            self.remove(session)
        until = time.monotonic() + _RELEASE_S
        try:
            self._tell(methods.RELEASE_SESSIONS, held, until if deadline is None else min(until, deadline))
        except MixserveError as error:
            _UNTOLD.info("cannot release sessions; they become free when their leases expire: %s", error)

    def abandon(self, held: HeldSession) -> None:
        """Release a session in the background, for a caller whose time has run out."""
        with self._lock:
            if self._closed:
                return
            self._held.pop(held, None)
            self._abandoned.add(held)
            self._start()
        self._changed.put(None)

    def settle(self, mixture: str, name: str, deadline: float | None) -> None:
        """Release now the abandoned leases of that session, so that the caller can open it again."""
        with self._lock:
            left = [held for held in self._abandoned if (held.mixture, held.name) == (mixture, name)]
        if left:
            self.release(*left, deadline=deadline)

    def close(self) -> None:
        """Release all sessions, and end the thread."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            held, self._closed = [*self._held, *self._abandoned], True
        self._changed.put(None)
        if held:
            self.release(*held)

    def join(self) -> None:
        """Wait up to 5 s for the thread to end."""
        if os.getpid() == self._pid and self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mixserve-leases", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        due = math.inf
        while not self._closed:
            with self._lock:
                held, ttl_s = list(self._held), min(self._held.values(), default=_IDLE_S)
                abandoned = list(self._abandoned)
            if abandoned:
                self.release(*abandoned)
                # Only after the release, and only these: until then `settle` must find them.
                with self._lock:
                    self._abandoned.difference_update(abandoned)
                continue
            every_s = max(_LEAST_EVERY_S, ttl_s / 3)
            now = time.monotonic()
            due = min(due, now + every_s)  # `min`: opening a session must not postpone the renewals of others
            with suppress(Empty):
                self._changed.get(timeout=min(max(0.0, due - now), _IDLE_S))
                continue
            if time.monotonic() < due:
                continue
            due = time.monotonic() + every_s
            try:
                self._tell(methods.RENEW_SESSIONS, held, due)  # no longer than until the next renewal is due
            except MixserveError as error:
                _UNTOLD.info("cannot renew leases; will try again: %s", error)

    def _tell(self, method: str, held: Sequence[HeldSession], deadline: float) -> None:
        """Send `held` to the server, in requests of up to 1,000 sessions; stops at the first that fails."""
        for begin in range(0, len(held), HELD_LIMIT):
            self._caller.call(method, encode_held(held[begin : begin + HELD_LIMIT]), deadline)


# One keeper for a client and its sessions, in each process that uses them.
SharedLeases = PerProcess[LeaseKeeper]


def leases_of(resources: Resources) -> SharedLeases:
    """The lease keeper of each process; it closes before the resources of that process, which it needs to release."""

    def make() -> LeaseKeeper:
        here = resources.here
        leases = LeaseKeeper(here.session_caller)
        here.close_first(leases)
        return leases

    return SharedLeases(make)
