"""The sessions in memory. A session is loaded at its first use, and used by one thread at a time."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

from mixserve.access.call import error_fields
from mixserve.limits import ServerLimits
from mixserve.sessions.session import Session
from mixserve.sessions.silence import Silences
from mixserve_client.errors import Overloaded, StorageFailed, Unavailable
from mixserve_client.forks import renew_in_forks
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

# Statistics, and last answers, of all sessions together: clients and users' functions decide how large these are.
KEPT_BYTES = 1 << 30
# Short, because a call that waits for a busy session takes a thread from other sessions. Clients retry by themselves.
_BUSY_S = 0.2
# Not much longer: a client that closes makes room before any lease ends.
_LEAST_RETRY_S, _MOST_RETRY_S = 1.0, 3.0


class Key(NamedTuple):
    """The identity of a session."""

    mixture: str
    name: str


class Entry:
    """A place for one session. The thread that has entered it may replace the session."""

    # `removed` is for threads that waited for the lock: they find an entry that is no longer in the table.

    __slots__ = ("counted_bytes", "lock", "removed", "session")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: Session | None = None
        self.removed = False
        self.counted_bytes = 0  # of the session, in the sum over all


class LoadedSessions:
    """A table of up to `most` sessions. Thread-safe. Nothing but `all` takes longer if there are more of them.

    If it is full, a session leaves it that no client holds, the one that was used least recently. If clients hold all
    of them, one of those leaves if sessions are `kept` on disk as well; otherwise there is no room.
    """

    # Order of locks: an entry's, then the table's. The table's is held for moments only, and no thread waits for an
    # entry's while it holds the table's: one slow session would stop all others.

    def __init__(self, most: int = ServerLimits().sessions, *, kept: bool = False, ttl_s: float = 0.0):
        """Holders that are silent for `ttl_s` seconds make room, so that is what refused clients wait for."""
        self._most, self._kept, self._ttl_s = most, kept, ttl_s
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, Entry] = OrderedDict()  # the least recently used first
        self._closed: OrderedDict[Key, None] = OrderedDict()  # those without a holder, in the same order
        self._silences: Silences[tuple[Key, Entry]] = Silences()
        self._bytes = 0
        # The time of the last renewal of held sessions that left memory: a journal does not have it.
        self._last_seen: OrderedDict[Key, float] = OrderedDict()
        self.evicted = 0  # sessions that left memory because it was full
        self.refused = LimitedLog(_logger, "sessions")
        renew_in_forks(self, LoadedSessions._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        # A thread of the parent may have been inside a session: it will never release that lock here.
        for entry in self._entries.values():
            entry.lock = threading.Lock()

    def get(self, key: Key) -> Session | None:
        """The session, for a look at it: another thread may be using it."""
        entry = self._entries.get(key)
        return None if entry is None else entry.session

    def all(self) -> list[tuple[Key, Session]]:
        """All sessions, for a look at them: other threads may be using them."""
        with self._lock:
            entries = list(self._entries.items())
        return [(key, session) for key, entry in entries if (session := entry.session) is not None]

    def some(self, most: int) -> list[Key]:
        """The keys of up to `most` sessions."""
        with self._lock:
            return list(islice(self._entries, most))

    def check_room(self, kept_bytes: int, wanted_bytes: int) -> None:
        """Raises StorageFailed if a session that keeps `kept_bytes` has no room for `wanted_bytes` instead."""
        if wanted_bytes <= kept_bytes:  # shrinking is always allowed, also above the limit
            return
        others = self._bytes - kept_bytes
        if others + wanted_bytes > KEPT_BYTES:
            raise StorageFailed(  # not Overloaded: retrying does not help until a session is released
                f"this session would keep {wanted_bytes} bytes of statistics, the server's other sessions keep "
                f"{others}, and {KEPT_BYTES} together are allowed; release sessions, or reset their statistics"
            )

    @contextmanager
    def enter(self, key: Key, load: Callable[[float | None], Session]) -> Generator[Entry]:
        """The place of that session, for this thread alone.

        `load` makes the session of an empty place, from the time at which its holder was last seen (None: unknown).
        Raises Unavailable if the session is busy, Overloaded if there are too many, and what `load` raises.
        """
        while True:
            entry = self._entry(key)
            if not entry.lock.acquire(timeout=_BUSY_S):
                raise Unavailable(f"the session {key.name!r} is busy with another call")
            try:
                if entry.removed:  # while this thread waited: the session may have a new entry
                    continue
                try:
                    if entry.session is None:
                        session = load(self._last_seen.get(key))
                        entry.session = session
                        with self._lock:
                            self._last_seen.pop(key, None)  # only after `load`, which may fail and be retried
                            self._silences.add(session.renewed, (key, entry))
                    yield entry
                finally:
                    with self._lock:
                        self._left(key, entry)
                return
            finally:
                entry.lock.release()

    def end_silent(self, before: float) -> None:
        """Take sessions out of memory that were last renewed before that time, unless they are busy."""
        with self._lock:
            for key, entry in self._silences.before(before, _renewed):
                session = entry.session
                if session is None or not entry.lock.acquire(blocking=False):
                    self._silences.add(time.monotonic(), (key, entry))  # in use, so look again later
                    continue
                try:
                    if session.renewed < before:  # not entered in between
                        self._remove(key, entry)
                    else:
                        self._silences.add(session.renewed, (key, entry))
                finally:
                    entry.lock.release()
            while self._last_seen and next(iter(self._last_seen.values())) < before:
                self._last_seen.popitem(last=False)
            if len(self._silences) > 2 * len(self._entries) + 1000:
                self._silences.keep(lambda held: not held[1].removed)

    def last_seen(self, key: Key) -> float | None:
        """When the holder of a session that has left memory was last seen; None if that is not known."""
        return self._last_seen.get(key)

    def saw(self, key: Key) -> None:
        """The holder of a session that is not in memory has renewed its lease now."""
        with self._lock:
            if key not in self._entries:
                self._see(key, time.monotonic())

    @contextmanager
    def without(self, key: Key) -> Generator[bool]:
        """Whether the session is not in memory. No thread can load it in the meantime: for them it is busy."""
        entry = Entry()
        with entry.lock:
            with self._lock:
                is_free = key not in self._entries
                if is_free:
                    self._entries[key] = entry
            try:
                yield is_free
            finally:
                if is_free:
                    with self._lock:
                        self._remove(key, entry)

    def _entry(self, key: Key) -> Entry:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if len(self._entries) >= self._most and not self._make_room():
                    raise self._full_error()
                entry = self._entries[key] = Entry()
            self._entries.move_to_end(key)
            return entry

    # What follows needs the table's lock.

    def _make_room(self) -> bool:
        """Take out one session. False if all are busy, or held and not on disk."""
        # No more are busy than there are threads. A copy, since taking one out changes the order.
        used_last = islice(self._entries, _BUSY_AT_MOST) if self._kept else ()
        for key in [*islice(self._closed, _BUSY_AT_MOST), *used_last]:
            entry = self._entries.get(key)
            if entry is None or not entry.lock.acquire(blocking=False):
                continue
            try:
                if entry.session is not None:
                    self._remove(key, entry)
                    self.evicted += 1
                    return True
            finally:
                entry.lock.release()
        return False

    def _full_error(self) -> Overloaded:
        oldest = self._silences.oldest
        free_in_s = self._ttl_s if oldest is None else oldest + self._ttl_s - time.monotonic()
        error = Overloaded(
            f"clients hold {self._most} sessions of this server, and it has no room for more: close some, or raise "
            "sessions in server.limits",
            min(max(free_in_s, _LEAST_RETRY_S), _MOST_RETRY_S),
        )
        self.refused.warn(
            "no room for another session: clients hold %d, as many as server.limits.sessions allows. A session is free "
            "when its client closes it, or is silent for %.0f s",
            self._most,
            self._ttl_s,
            extra=error_fields(error),
        )
        return error

    def _left(self, key: Key, entry: Entry) -> None:
        """A thread leaves the entry: count what has changed."""
        session = entry.session
        if session is None or session.dropped:
            self._remove(key, entry)
            return
        self._count(entry, session.kept_bytes)
        if session.lease:
            self._closed.pop(key, None)
        else:
            self._closed[key] = None
            self._closed.move_to_end(key)

    def _remove(self, key: Key, entry: Entry) -> None:
        session, entry.session, entry.removed = entry.session, None, True
        del self._entries[key]
        self._closed.pop(key, None)
        self._count(entry, 0)
        if session is not None and session.lease:
            self._see(key, session.renewed)

    def _see(self, key: Key, when: float) -> None:
        self._last_seen.pop(key, None)  # so that it comes to the end: the first is the oldest, more or less
        self._last_seen[key] = when
        if len(self._last_seen) > self._most:
            self._last_seen.popitem(last=False)

    def _count(self, entry: Entry, kept_bytes: int) -> None:
        self._bytes += kept_bytes - entry.counted_bytes
        entry.counted_bytes = kept_bytes


_BUSY_AT_MOST = 64  # sessions: there are fewer threads that use some


def _renewed(held: tuple[Key, Entry]) -> float | None:
    """When that session was last renewed; None if it is gone."""
    _, entry = held
    session = entry.session
    return None if entry.removed else float("-inf") if session is None else session.renewed
