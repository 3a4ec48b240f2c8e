"""A thread that looks at waits which may have lasted too long."""

import logging
import threading
import time
import weakref
from typing import Protocol

_logger = logging.getLogger("mixserve_client")

_EVERY_S = 0.5
_LEAST_EVERY_S = 0.005


class Watched(Protocol):
    """A wait for a reply."""

    def look(self, now: float) -> None:
        """Do what is due after the time that it has lasted."""
        ...


class Owner(Protocol):
    """Whose waits these are."""

    def look(self, now: float) -> float:
        """Do what is due; returns the time when something is due next, 0 for never."""
        ...


class Watch:
    """Looks at waits every half second, or more often if they are short. Its thread runs while there are some.

    It keeps neither its owner nor the waits alive.
    """

    def __init__(self, owner: Owner):
        self._owner = weakref.ref(owner)
        self._waits: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._every_s = _EVERY_S
        self._look_at = self._sleeps_until = 0.0
        self._has_new = False  # a wait has come since the thread looked last
        # Reentrant: the garbage collector may end a wait in a thread that holds it.
        self.changed = threading.Condition()
        self._is_running = False
        self._closed = False

    def add(self, wait: Watched) -> None:
        """Look at this wait from now on."""
        with self.changed:
            self._waits.add(wait)
            self._has_new = True
            if self._sleeps_until > time.monotonic() + self._every_s:  # there was no wait, and it looks at others later
                self.changed.notify_all()
            self._start()

    def remove(self, wait: Watched) -> None:
        """It is over."""
        with self.changed:
            self._waits.discard(wait)

    def need(self, seconds: float) -> None:
        """Notice what lasts so many seconds before it lasts much longer."""
        every_s = max(seconds / 8, _LEAST_EVERY_S)
        if every_s < self._every_s:
            with self.changed:
                self._every_s = min(self._every_s, every_s)
                self.changed.notify_all()

    def look_at(self, when: float) -> None:
        """Look at the owner at that time, a time of `time.monotonic()`."""
        with self.changed:
            self._look_at = min(self._look_at or when, when)
            self.changed.notify_all()
            self._start()

    def close(self) -> None:
        """End the thread."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def _start(self) -> None:
        if not (self._is_running or self._closed):
            self._is_running = True
            threading.Thread(target=_run, args=(weakref.ref(self),), name="mixserve-watch", daemon=True).start()

    def look(self) -> "tuple[float, threading.Condition] | None":
        """Look once. Returns when to look again and what wakes the thread before, None to end it."""
        now = time.monotonic()
        with self.changed:
            waits, is_due = list(self._waits), 0 < self._look_at <= now
            if is_due:
                self._look_at = 0.0
        for wait in waits:
            wait.look(now)
        owner = self._owner() if is_due else None
        next_at = 0.0 if owner is None else owner.look(now)
        with self.changed:
            if next_at:
                self._look_at = min(self._look_at or next_at, next_at)
            if self._closed or not (self._waits or self._look_at):
                self._is_running = False
                return None
            # Waits that come and go are looked at regularly: to wake this thread for each of them would cost more.
            self._sleeps_until = now + self._every_s if self._waits or self._has_new else self._look_at
            self._has_new = False
            return self._sleeps_until, self.changed


def _run(kept: "weakref.ref[Watch]") -> None:
    # Without a reference while it waits: the client may be dropped meanwhile.
    while (watch := kept()) is not None:
        try:
            found = watch.look()
        except BaseException:  # such as SystemExit from a handler of the log: waits must end all the same
            _logger.exception("cannot look at the waits for replies")
            found = time.monotonic() + _EVERY_S, watch.changed
        del watch
        if found is None:
            return
        until, changed = found
        with changed:
            changed.wait(max(0.0, until - time.monotonic()))
