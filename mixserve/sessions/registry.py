"""The sessions of a server, by mixture and name: who holds them, and for how long the server keeps them."""

import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from numbers import Real
from typing import Any

from mixserve.access.audit import audit
from mixserve.error_boundary import error_boundary
from mixserve.node import MixDataSourcesNode
from mixserve.sessions.checkpoints import Checkpoints
from mixserve.sessions.journal import Journal
from mixserve.sessions.listing import Listing, age_s, session_files
from mixserve.sessions.loaded import Key, LoadedSessions
from mixserve.sessions.operations import ABOUT_CHECKPOINTS, Subject, find_operation
from mixserve.sessions.session import Session
from mixserve.sessions.storage import StateFolder
from mixserve_client.errors import (
    CorruptCheckpoint,
    FingerprintMismatch,
    InvalidRequest,
    MixserveError,
    SessionTaken,
    StorageFailed,
    UnknownSession,
)
from mixserve_client.schema.sessions import (
    LEAST_TTL_S,
    CallReply,
    CallRequest,
    HeldSession,
    OpenedSession,
    OpenRequest,
    SessionDescription,
)
from mixserve_client.schema.text import show
from mixserve_client.wire.session import FEW_BYTES, UnreadCall

_logger = logging.getLogger("mixserve")

TTL_S = 900.0
JOURNAL_DAYS = 7.0
_DAY_S, _HOUR_S = 86400.0, 3600.0
_MOST_RELEASED = 1000
MOST_JOURNALS = 20_000


class Sessions:
    """Thread-safe. A session leaves memory when its holder is silent for `ttl_s` seconds."""

    def __init__(
        self,
        nodes: Mapping[str, MixDataSourcesNode],
        folder: StateFolder | None = None,
        *,
        ttl_s: float = TTL_S,
        journal_days: float = JOURNAL_DAYS,
    ):
        """Raises ValueError for durations that are not positive and finite, or too short to renew leases in time."""
        if not _is_positive(ttl_s):
            raise ValueError(f"session_ttl_s must be a positive, finite number of seconds, got {show(ttl_s)}")
        if ttl_s < LEAST_TTL_S:
            raise ValueError(
                f"session_ttl_s must be at least {LEAST_TTL_S} s, so that clients renew leases in time, got {ttl_s}"
            )
        if not _is_positive(journal_days):
            raise ValueError(f"journal_days must be a positive, finite number of days, got {show(journal_days)}")
        self._nodes = dict(nodes)
        self._folder = folder
        self._checkpoints = {name: Checkpoints(folder, name) for name in nodes} if folder is not None else {}
        self._ttl_s = ttl_s
        self._journal_days = journal_days
        self._loaded = LoadedSessions()
        self._listing = Listing()
        # Leases that were released. A session may be busy, or not open yet, when its release arrives.
        self._released: OrderedDict[str, None] = OrderedDict()
        self._started = time.monotonic()
        # The first deletion of old journals waits for one ttl_s: after a restart, holders need that to renew leases.
        self._swept = self._started + ttl_s - _HOUR_S

    def open(self, request: OpenRequest) -> OpenedSession:
        """Give a session, known or new, to the client that sent `request`.

        Raises SessionTaken if another client holds it, FingerprintMismatch, CorruptCheckpoint, StorageFailed and
        Overloaded.
        """
        self.end_silent()  # makes room first
        key = Key(request.mixture, request.name)
        with self._loaded.enter(key, partial(self._load, key, request)) as entry:
            session = entry.session
            assert session is not None
            if session.lease == request.lease:  # a retry: its first answer was lost
                session.renew()
            else:
                self._check_free(key, session, request)
                held_by = session.holder if self._is_held(session) else None
                if request.fresh and not session.is_new:
                    session = entry.session = self._begin(key)
                session.hold(request)
                # The client gave up, and its release came before this call was done. Without this check the session
                # would have a holder that never renews.
                if request.lease in self._released:
                    session.release()
                    raise SessionTaken(f"the session {key.name!r} was released before it was open; open it again")
                _audit_opening(key, request, held_by)
            return OpenedSession(self._ttl_s, session.sequence, session.index, session.epoch, session.was_resumed)

    def check(self, call: UnreadCall) -> None:
        """Raises InvalidRequest, UnknownSession or SessionTaken for a call that cannot be made, whatever its arguments
        are; and what loading the session raises."""
        operation = find_operation(call.operation)
        if call.arguments is not None and len(call.arguments) > FEW_BYTES and not operation.large:
            raise InvalidRequest(
                f"the arguments of {call.operation} must have at most {FEW_BYTES} bytes, got {len(call.arguments)}"
            )
        if call.operation in ABOUT_CHECKPOINTS and not call.lease:
            return
        session = self._loaded.get(key := Key(call.mixture, call.name))
        if session is None:
            with self._enter(key) as session:
                pass
        session.check_caller(call, operation)

    def call(self, request: CallRequest) -> CallReply:
        """Run one operation on a session. Raises UnknownSession, and what `Session.call` raises."""
        if request.operation in ABOUT_CHECKPOINTS and not request.lease:
            on = Subject(request.name, self._nodes[request.mixture], self._checkpoints.get(request.mixture))
            return CallReply(find_operation(request.operation).run(on, request.arguments), False, 0, 0)
        with self._enter(Key(request.mixture, request.name)) as session:
            return session.call(request)

    def renew(self, held: Iterable[HeldSession]) -> None:
        """Renew the leases of these sessions. Skips sessions that are not held under the given lease."""
        for mixture, name, lease in held:
            key = Key(mixture, name)
            # One at a time: a source that fails while its session is loaded must not end the leases of the others.
            with suppress(MixserveError), error_boundary(f"the lease of the session {name!r}"):
                session = self._loaded.get(key)  # not entered: a long call must not end its own lease
                if session is None and not self._is_kept(key):
                    continue
                if session is None:  # it left memory after an error, or the server has restarted
                    with self._enter(key) as session:
                        pass
                if session.lease == lease:
                    session.renew()
                    session.touch()

    def release(self, held: Iterable[HeldSession]) -> None:
        """Release these sessions. Skips sessions that are not held under the given lease."""
        for mixture, name, lease in held:
            # First, so that the lease is void even if the session is busy.
            self._released[lease] = None
            while len(self._released) > _MOST_RELEASED:
                self._released.popitem(last=False)
            key = Key(mixture, name)
            if self._loaded.get(key) is None and not self._is_kept(key):
                continue
            with (
                suppress(MixserveError),
                error_boundary(f"the release of the session {name!r}"),
                self._enter(key) as session,
            ):
                if session.lease == lease:
                    audit("session-released", mixture=mixture, session=name, holder=session.holder)
                    session.release()
                    session.dropped = self._folder is not None  # its journal has it; without a folder only memory does

    def describe(self, mixture: str = "") -> list[SessionDescription]:
        """Descriptions of the sessions of `mixture`, or of all mixtures, sorted."""
        loaded = [(key, session) for key, session in self._loaded.all() if mixture in ("", key.mixture)]
        known = {key: self._describe(key, session) for key, session in loaded}
        if self._folder is not None:
            for name in [mixture] if mixture else self._nodes:
                kept = {path.name for path in session_files(self._folder.journals(name))}
                for session in kept | set(self._checkpoints[name].sessions()):
                    if (key := Key(name, session)) not in known:
                        known[key] = self._describe_on_disk(key)
        return [known[key] for key in sorted(known)]

    def end_silent(self) -> None:
        """Remove sessions with silent holders from memory; once an hour, delete old journals."""
        for key, session in self._loaded.all():
            if not self._is_live(session):
                self._loaded.leave(key, self._is_live)  # checks again: a renewal may come in between
        now = time.monotonic()
        self._loaded.forget_last_seen(now - self._ttl_s)
        if self._folder is not None and now - self._swept >= _HOUR_S:
            self._swept = now
            self._delete_old_journals(self._folder)

    def close(self) -> None:
        """Release the folder, so that another server can use it. Calls that still run write nothing more."""
        if self._folder is not None:
            self._folder.close()

    @contextmanager
    def _enter(self, key: Key) -> Generator[Session]:
        """A known session, for this thread alone. Raises UnknownSession."""
        with self._loaded.enter(key, partial(self._load, key, None)) as entry:
            assert entry.session is not None
            yield entry.session

    def _load(self, key: Key, opening: OpenRequest | None, last_seen: float | None) -> Session:
        """The session in its journal, or a new one if there is none and a client is `opening` it."""
        journal = self._journal(key)
        if journal is not None:
            try:
                node, checkpoints = self._nodes[key.mixture], self._checkpoints[key.mixture]
                # A journal does not say when its holder was last seen. After a restart every holder gets a whole ttl_s.
                renewed = self._started if last_seen is None else last_seen
                strict = opening is None or opening.strict
                room = self._loaded.check_room
                session = Session.resume(key.name, node, journal, checkpoints, renewed, room, strict=strict)
                if not session.lease:
                    session.renewed = time.monotonic() - age_s(journal.path)
                return session
            except FileNotFoundError:
                pass
            except OSError as error:
                if opening is None or not opening.fresh:
                    raise CorruptCheckpoint(f"the journal {journal.path} cannot be read: {error.strerror}") from error
            except (CorruptCheckpoint, FingerprintMismatch):
                if opening is None or not opening.fresh:
                    raise
        if opening is None:
            known = ", ".join(map(repr, self._names(key.mixture))) or "none"
            raise UnknownSession(f"the mixture {key.mixture!r} has no session {key.name!r}; it has {known:.1000}")
        self._check_journals(key)
        return self._begin(key)

    def _begin(self, key: Key) -> Session:
        node, checkpoints = self._nodes[key.mixture], self._checkpoints.get(key.mixture)
        return Session(key.name, node, self._journal(key), checkpoints, time.monotonic(), self._loaded.check_room)

    def _check_journals(self, key: Key) -> None:
        """Raises StorageFailed if there is no room for the journal of another session."""
        if self._folder is None or self._is_kept(key):
            return
        count = sum(len(session_files(self._folder.journals(name))) for name in self._nodes)
        if count >= MOST_JOURNALS:
            raise StorageFailed(
                f"this server has journals of {count} sessions, and no room for more; it deletes a journal that is not "
                f"used for {self._journal_days:g} days. Open a known session, with fresh=True to start it over"
            )

    def _is_kept(self, key: Key) -> bool:
        """Whether there is a journal of that session."""
        return self._folder is not None and os.path.lexists(self._folder.journals(key.mixture) / key.name)

    def _check_free(self, key: Key, session: Session, request: OpenRequest) -> None:
        """Raises SessionTaken if another client holds the session, and is not silent."""
        if self._is_held(session) and not request.take_over:
            # Loaded with strict=False for this request alone: its holder must not find it in another mixture's order.
            session.dropped = session.is_converted
            raise SessionTaken(
                f"the session {key.name!r} of the mixture {key.mixture!r} is held by "
                f"{session.holder or 'another client'}, last seen {_silent_s(session):.0f} s ago; open it with "
                f"take_over=True to take it, or when its holder has been silent for {self._ttl_s:.0f} s"
            )

    def _journal(self, key: Key) -> Journal | None:
        if self._folder is None:
            return None
        return Journal(self._folder.journals(key.mixture) / key.name, self._folder)

    def _is_held(self, session: Session) -> bool:
        """Whether a client holds it that is not silent, and has not released it while it was busy."""
        return bool(session.lease) and session.lease not in self._released and self._is_live(session)

    def _is_live(self, session: Session) -> bool:
        return _silent_s(session) < self._ttl_s

    def _describe(self, key: Key, session: Session) -> SessionDescription:
        checkpoints = self._checkpoints[key.mixture].names(key.name) if self._checkpoints else ()
        holder = session.holder if self._is_held(session) else ""
        return SessionDescription(*key, holder, _silent_s(session), session.index, session.epoch, checkpoints)

    def _describe_on_disk(self, key: Key) -> SessionDescription:
        journal, checkpoints = self._journal(key), self._checkpoints[key.mixture].names(key.name)
        assert journal is not None
        try:
            found = self._listing.summarise(journal)
        except (FileNotFoundError, NotADirectoryError):  # only its checkpoints are left
            return SessionDescription(*key, "", 0.0, 0, 0, checkpoints, saved_only=True)
        # Within one ttl_s of a restart, its holder may still come back.
        is_held = time.monotonic() - self._started < self._ttl_s
        holder = found.holder if is_held else ""
        return SessionDescription(*key, holder, found.idle_s, found.index, found.epoch, checkpoints, found.damaged)

    def _names(self, mixture: str) -> list[str]:
        """The names of the sessions in memory and on disk, sorted."""
        kept = session_files(self._folder.journals(mixture)) if self._folder is not None else []
        loaded = {key.name for key, _ in self._loaded.all() if key.mixture == mixture}
        return sorted(loaded | {path.name for path in kept})

    def _delete_old_journals(self, folder: StateFolder) -> None:
        oldest = time.time() - self._journal_days * _DAY_S
        for mixture in self._nodes:
            for path in session_files(folder.journals(mixture)):
                # `without` keeps the session out of memory meanwhile: its next write would be lost.
                with self._loaded.without(Key(mixture, path.name)) as is_free, suppress(OSError):
                    if is_free and path.stat().st_mtime < oldest:
                        folder.remove(path)
                        _logger.info("deleted the journal %s: not used for %g days", path, self._journal_days)


def _audit_opening(key: Key, request: OpenRequest, held_by: str | None) -> None:
    event = "session-opened" if held_by is None else "session-taken-over"
    about = {"holder": request.holder or None, "from": held_by, "fresh": "yes" if request.fresh else None}
    audit(event, mixture=key.mixture, session=key.name, **about)


def _silent_s(session: Session) -> float:
    return time.monotonic() - session.renewed


def _is_positive(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and 0 < float(number) < math.inf
