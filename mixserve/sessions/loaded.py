"""The sessions that are in memory: loaded when they are first entered, entered by one thread at a time."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NamedTuple

from mixserve.sessions.session import Session
from mixserve_client.errors import Overloaded, StorageFailed, Unavailable
from mixserve_client.forks import renew_in_forks

MOST = 10_000
# What sessions keep of what clients sent, and of what functions said of batches.
KEPT_BYTES = 1 << 30
# Clients ask again by themselves; whoever waits here keeps a thread from other sessions.
_BUSY_S = 0.2


class Key(NamedTuple):
    """What a session is known by."""

    mixture: str
    name: str


class Entry:
    """A place for a session: whoever has entered it may put another one there. It is left empty where it is dropped."""

    __slots__ = ("lock", "removed", "session")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.session: Session | None = None
        self.removed = False


class LoadedSessions:
    """Safe to use from many threads: the lock over all is held for moments only, and never while a session's own is
    waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Key, Entry] = {}
        # When holders were heard of whose session left memory and is to be read from its journal again.
        self._heard: dict[Key, float] = {}
        renew_in_forks(self, LoadedSessions._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        for entry in self._entries.values():
            entry.lock = threading.Lock()

    def get(self, key: Key) -> Session | None:
        """The session, not entered: to look at it."""
        entry = self._entries.get(key)
        return None if entry is None else entry.session

    def all(self) -> list[tuple[Key, Session]]:
        """All sessions, not entered."""
        with self._lock:
            entries = list(self._entries.items())
        return [(key, session) for key, entry in entries if (session := entry.session) is not None]

    def check_room(self, kept_bytes: int, wanted_bytes: int) -> None:
        """Raises StorageFailed where a session that keeps so many bytes cannot keep so many more."""
        if wanted_bytes <= kept_bytes:
            return
        others = sum(session.kept_bytes for _, session in self.all()) - kept_bytes
        if others + wanted_bytes > KEPT_BYTES:
            raise StorageFailed(  # not Overloaded: to ask again does not help before something is let go of
                f"this session would keep {wanted_bytes} bytes of statistics, the server's others keep {others}, and "
                f"{KEPT_BYTES} together are allowed; let go of sessions, or reset their statistics"
            )

    @contextmanager
    def entered(self, key: Key, load: Callable[[float | None], Session]) -> Generator[Entry]:
        """The place of that session, which nobody else enters meanwhile.

        An empty one is filled with what `load` gives; it is told when the holder was heard of, where that is known.
        Raises Unavailable where the session is busy, Overloaded where there are too many, and what `load` raises.
        """
        while True:
            entry = self._entry(key)
            if not entry.lock.acquire(timeout=_BUSY_S):
                raise Unavailable(f"the session {key.name!r} is busy with another call")
            try:
                if entry.removed:  # while this thread waited
                    continue
                try:
                    if entry.session is None:
                        entry.session = load(self._heard.get(key))
                        self._heard.pop(key, None)
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
        """Whether the session is not in memory; it is not loaded meanwhile."""
        with self._lock:
            yield key not in self._entries

    def forget_heard(self, before: float) -> None:
        """Forget holders who were last heard of before that time."""
        for key, heard in list(self._heard.items()):
            if heard < before:
                self._heard.pop(key, None)

    def _entry(self, key: Key) -> Entry:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                if len(self._entries) >= MOST:
                    raise Overloaded(f"this server holds {MOST} sessions, as many as it can; let go of some")
                entry = self._entries[key] = Entry()
            return entry

    def _remove(self, key: Key, entry: Entry) -> None:
        session, entry.session, entry.removed = entry.session, None, True
        with self._lock:
            del self._entries[key]
            if session is not None and session.lease:
                self._heard.pop(key, None)
                self._heard[key] = session.renewed
                if len(self._heard) > MOST:
                    del self._heard[next(iter(self._heard))]
