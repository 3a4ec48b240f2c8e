"""The sessions of a server by mixture and name: who holds which, and for how long they are kept."""

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

from mixserve.error_boundary import error_boundary
from mixserve.node import MixDataSourcesNode
from mixserve.sessions.checkpoints import Checkpoints
from mixserve.sessions.journal import Journal
from mixserve.sessions.listing import Listing, age_s, session_files
from mixserve.sessions.loaded import Key, LoadedSessions
from mixserve.sessions.operations import ABOUT_CHECKPOINTS, Subject, operation_named
from mixserve.sessions.session import Session
from mixserve.sessions.storage import StateFolder
from mixserve.shown import shown
from mixserve_client.errors import (
    CorruptCheckpoint,
    FingerprintMismatch,
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

_logger = logging.getLogger("mixserve")

TTL_S = 900.0
JOURNAL_DAYS = 7.0
_DAY_S, _HOUR_S = 86400.0, 3600.0
_GIVEN_UP = 1000
MOST_JOURNALS = 20_000


class Sessions:
    """Safe to use from many threads. A session whose holder is silent for `ttl_s` seconds leaves memory."""

    def __init__(
        self,
        nodes: Mapping[str, MixDataSourcesNode],
        folder: StateFolder | None = None,
        *,
        ttl_s: float = TTL_S,
        journal_days: float = JOURNAL_DAYS,
    ):
        if not _is_positive(ttl_s):
            raise ValueError(f"session_ttl_s must be a positive, finite number of seconds, got {shown(ttl_s)}")
        if ttl_s < LEAST_TTL_S:
            raise ValueError(
                f"session_ttl_s must be at least {LEAST_TTL_S} s, for clients to renew leases in time, got {ttl_s}"
            )
        if not _is_positive(journal_days):
            raise ValueError(f"journal_days must be a positive, finite number of days, got {shown(journal_days)}")
        self._nodes = dict(nodes)
        self._folder = folder
        self._checkpoints = {name: Checkpoints(folder, name) for name in nodes} if folder is not None else {}
        self._ttl_s = ttl_s
        self._journal_days = journal_days
        self._loaded = LoadedSessions()
        self._listing = Listing()
        self._given_up: OrderedDict[str, None] = OrderedDict()  # leases, also of sessions that were busy then
        self._started = time.monotonic()
        self._swept = self._started + ttl_s - _HOUR_S  # not before holders had the time to renew their leases

    def open(self, request: OpenRequest) -> OpenedSession:
        """Let the one who asks hold a session, which is gone on with or begun.

        Raises SessionTaken where another holds it, FingerprintMismatch, CorruptCheckpoint, StorageFailed, Overloaded.
        """
        self.end_silent()
        key = Key(request.mixture, request.name)
        with self._loaded.entered(key, partial(self._load, key, request)) as entry:
            session = entry.session
            assert session is not None
            if session.lease == request.lease:  # this request came before
                session.renew()
            else:
                self._check_free(key, session, request)
                if request.fresh and not session.is_new:
                    session = entry.session = self._begun(key)
                session.hold(request)
                if request.lease in self._given_up:  # while it was being opened
                    session.release()
                    raise SessionTaken(f"the session {key.name!r} was let go before it was open; open it again")
            return OpenedSession(self._ttl_s, session.sequence, session.index, session.epoch, session.was_resumed)

    def call(self, request: CallRequest) -> CallReply:
        """Do one thing with a session. Raises UnknownSession, and what `Session.call` raises."""
        if request.operation in ABOUT_CHECKPOINTS and not request.lease:
            on = Subject(request.name, self._nodes[request.mixture], self._checkpoints.get(request.mixture))
            return CallReply(operation_named(request.operation).run(on, request.arguments), False, 0, 0)
        with self._entered(Key(request.mixture, request.name)) as session:
            return session.call(request)

    def renew(self, held: Iterable[HeldSession]) -> None:
        """The holders of these sessions live; those that are not held under the given leases are passed over."""
        for mixture, name, lease in held:
            key = Key(mixture, name)
            # Each by itself: a source that fails while one is loaded must not end the leases of the others.
            with suppress(MixserveError), error_boundary(f"the lease of the session {name!r}"):
                session = self._loaded.get(key)  # not entered: it may be busy
                if session is None and not self._is_kept(key):
                    continue
                if session is None:
                    with self._entered(key) as session:
                        pass
                if session.lease == lease:
                    session.renew()
                    session.touch()

    def release(self, held: Iterable[HeldSession]) -> None:
        """Let go of these sessions; those that are not held under the given leases are passed over."""
        for mixture, name, lease in held:
            self._given_up[lease] = None
            while len(self._given_up) > _GIVEN_UP:
                self._given_up.popitem(last=False)
            key = Key(mixture, name)
            if self._loaded.get(key) is None and not self._is_kept(key):
                continue
            with (
                suppress(MixserveError),
                error_boundary(f"the release of the session {name!r}"),
                self._entered(key) as session,
            ):
                if session.lease == lease:
                    session.release()
                    session.dropped = self._folder is not None

    def described(self, mixture: str = "") -> list[SessionDescription]:
        """What is known of the sessions of a mixture, or of all."""
        loaded = [(key, session) for key, session in self._loaded.all() if mixture in ("", key.mixture)]
        known = {key: self._described(key, session) for key, session in loaded}
        if self._folder is not None:
            for name in [mixture] if mixture else self._nodes:
                kept = {path.name for path in session_files(self._folder.journals(name))}
                for session in kept | set(self._checkpoints[name].sessions()):
                    if (key := Key(name, session)) not in known:
                        known[key] = self._described_on_disk(key)
        return [known[key] for key in sorted(known)]

    def end_silent(self) -> None:
        """Let sessions leave memory whose holders are silent, and throw away journals that nobody used for long."""
        for key, session in self._loaded.all():
            if not self._is_live(session):
                self._loaded.leave(key, self._is_live)
        now = time.monotonic()
        self._loaded.forget_heard(now - self._ttl_s)
        if self._folder is not None and now - self._swept >= _HOUR_S:
            self._swept = now
            self._throw_away(self._folder)

    def close(self) -> None:
        """Let another server have the folder; what is under way here writes nothing more."""
        if self._folder is not None:
            self._folder.close()

    @contextmanager
    def _entered(self, key: Key) -> Generator[Session]:
        """A session that is known, while nobody else uses it. Raises UnknownSession."""
        with self._loaded.entered(key, partial(self._load, key, None)) as entry:
            assert entry.session is not None
            yield entry.session

    def _load(self, key: Key, opening: OpenRequest | None, heard: float | None) -> Session:
        """The session that a journal tells of, or a new one for who is opening it."""
        journal = self._journal(key)
        if journal is not None:
            try:
                node, checkpoints = self._nodes[key.mixture], self._checkpoints[key.mixture]
                renewed = self._started if heard is None else heard
                strict = opening is None or opening.strict
                room = self._loaded.check_room
                session = Session.resumed(key.name, node, journal, checkpoints, renewed, room, strict=strict)
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
            known = ", ".join(map(repr, self._names(key.mixture))) or "none at all"
            raise UnknownSession(f"the mixture {key.mixture!r} has no session {key.name!r}, but {known:.1000}")
        self._check_journals(key)
        return self._begun(key)

    def _begun(self, key: Key) -> Session:
        node, checkpoints = self._nodes[key.mixture], self._checkpoints.get(key.mixture)
        return Session(key.name, node, self._journal(key), checkpoints, time.monotonic(), self._loaded.check_room)

    def _check_journals(self, key: Key) -> None:
        """Raises StorageFailed where there are as many journals as there may be, and none of that session."""
        if self._folder is None or self._is_kept(key):
            return
        count = sum(len(session_files(self._folder.journals(name))) for name in self._nodes)
        if count >= MOST_JOURNALS:
            raise StorageFailed(
                f"this server keeps journals of {count} sessions, as many as it can; those that nobody uses for "
                f"{self._journal_days:g} days are thrown away. Open one that is known, with fresh=True to begin anew"
            )

    def _is_kept(self, key: Key) -> bool:
        """Whether there is a journal of that session."""
        return self._folder is not None and os.path.lexists(self._folder.journals(key.mixture) / key.name)

    def _check_free(self, key: Key, session: Session, request: OpenRequest) -> None:
        """Raises SessionTaken where somebody else holds the session who lives."""
        if self._is_held(session) and not request.take_over:
            session.dropped = session.is_converted
            raise SessionTaken(
                f"the session {key.name!r} of the mixture {key.mixture!r} is held by "
                f"{session.holder or 'another client'}, heard of {_silent_s(session):.0f} s ago; open it with "
                f"take_over=True to take it, or when its holder has been silent for {self._ttl_s:.0f} s"
            )

    def _journal(self, key: Key) -> Journal | None:
        if self._folder is None:
            return None
        return Journal(self._folder.journals(key.mixture) / key.name, self._folder)

    def _is_held(self, session: Session) -> bool:
        """Whether somebody holds it who lives; it may have been let go while it was busy."""
        return bool(session.lease) and session.lease not in self._given_up and self._is_live(session)

    def _is_live(self, session: Session) -> bool:
        return _silent_s(session) < self._ttl_s

    def _described(self, key: Key, session: Session) -> SessionDescription:
        checkpoints = self._checkpoints[key.mixture].names(key.name) if self._checkpoints else ()
        holder = session.holder if self._is_held(session) else ""
        return SessionDescription(*key, holder, _silent_s(session), session.index, session.epoch, checkpoints)

    def _described_on_disk(self, key: Key) -> SessionDescription:
        journal, checkpoints = self._journal(key), self._checkpoints[key.mixture].names(key.name)
        assert journal is not None
        try:
            found = self._listing.stood(journal)
        except (FileNotFoundError, NotADirectoryError):  # by now checkpoints are all that there is of it
            return SessionDescription(*key, "", 0.0, 0, 0, checkpoints, saved_only=True)
        lives = time.monotonic() - self._started < self._ttl_s
        holder = found.holder if lives else ""
        return SessionDescription(*key, holder, found.idle_s, found.index, found.epoch, checkpoints, found.damaged)

    def _names(self, mixture: str) -> list[str]:
        """Of the sessions in memory and on disk."""
        kept = session_files(self._folder.journals(mixture)) if self._folder is not None else []
        loaded = {key.name for key, _ in self._loaded.all() if key.mixture == mixture}
        return sorted(loaded | {path.name for path in kept})

    def _throw_away(self, folder: StateFolder) -> None:
        oldest = time.time() - self._journal_days * _DAY_S
        for mixture in self._nodes:
            for path in session_files(folder.journals(mixture)):
                with self._loaded.without(Key(mixture, path.name)) as is_free, suppress(OSError):
                    if is_free and path.stat().st_mtime < oldest:
                        folder.remove(path)
                        _logger.info("threw away the journal %s: nobody used it for days", path)


def _silent_s(session: Session) -> float:
    return time.monotonic() - session.renewed


def _is_positive(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and 0 < float(number) < math.inf
