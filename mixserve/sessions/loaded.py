"""The sessions in memory. A session is loaded at its first use, and used by one thread at a time."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

from mixserve.sessions.session import Session
from mixserve_client.errors import Overloaded, StorageFailed, Unavailable
from mixserve_client.forks import renew_in_forks

MOST = 10_000
# Statistics, and last answers, of all sessions together: clients and users' functions decide how large these are.
KEPT_BYTES = 1 << 30
# Short, because a call that waits for a busy session takes a thread from other sessions. Clients retry by themselves.
_BUSY_S = 0.2


class Key(NamedTuple):
    """The identity of a session."""

    mixture: str
    name: str


class Entry:
    """A place for one session. The thread that has entered it may replace the session."""

    # `removed` is for threads that waited for the lock: they find an entry that is no longer in the table.

    __slots__ = ("lock", "removed", "session")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: Session | None = None
        self.removed = False


class LoadedSessions:
    """A table of sessions. Thread-safe."""

    # Order of locks: an entry's, then the table's. The table's is held for moments only, and no thread waits for an
    # entry's while it holds the table's: one slow session would stop all others.

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Key, Entry] = {}
        # The time of the last renewal of held sessions that left memory: a journal does not have it.
        self._last_seen: dict[Key, float] = {}
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

    def check_room(self, kept_bytes: int, wanted_bytes: int) -> None:
        """Raises StorageFailed if a session that keeps `kept_bytes` has no room for `wanted_bytes` instead."""
        if wanted_bytes <= kept_bytes:  # shrinking is always allowed, also above the limit
            return
        others = sum(session.kept_bytes for _, session in self.all()) - kept_bytes
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
                        entry.session = load(self._last_seen.get(key))
                        self._last_seen.pop(key, None)  # only after `load`, which may fail and be retried
                    yield entry
                finally:
                    if entry.session is None or entry.session.dropped:
                        self._remove(key, entry)
                return
            finally:
                entry.lock.release()

    def leave(self, key: Key, is_wanted: Callable[[Session], bool]) -> None:
        """Take a session out of memory, unless it is busy or wanted."""
        entry = self._entries.get(key)
        if entry is None or not entry.lock.acquire(blocking=False):
            return
        try:
            if not entry.removed and entry.session is not None and not is_wanted(entry.session):
                self._remove(key, entry)
        finally:
            entry.lock.release()

    @contextmanager
    def without(self, key: Key) -> Generator[bool]:
        """Whether the session is not in memory. No thread can load it in the meantime."""
        with self._lock:
            yield key not in self._entries

    def forget_last_seen(self, before: float) -> None:
        """Forget holders that were last seen before that time."""
        for key, last_seen in list(self._last_seen.items()):
            if last_seen < before:
                self._last_seen.pop(key, None)

    def _entry(self, key: Key) -> Entry:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if len(self._entries) >= MOST:
                    raise Overloaded(f"this server has {MOST} sessions in memory, and no room for more; release some")
                entry = self._entries[key] = Entry()
            return entry

    def _remove(self, key: Key, entry: Entry) -> None:
        session, entry.session, entry.removed = entry.session, None, True
        with self._lock:
            del self._entries[key]
            if session is not None and session.lease:
                self._last_seen.pop(key, None)  # so that it comes to the end: the first is the oldest
                self._last_seen[key] = session.renewed
                if len(self._last_seen) > MOST:
                    del self._last_seen[next(iter(self._last_seen))]
