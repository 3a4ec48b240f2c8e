"""The sessions of a server by mixture and name: who holds which, which are in memory, which on disk."""

import logging
import math
import threading
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mixserve.node import MixDataSourcesNode
from mixserve.sessions.checkpoints import Checkpoints
from mixserve.sessions.journal import Journal
from mixserve.sessions.operations import ABOUT_CHECKPOINTS, Subject, operation_named
from mixserve.sessions.session import Session, read_record
from mixserve.sessions.storage import StateFolder
from mixserve_client.errors import (
    CorruptCheckpoint,
    FingerprintMismatch,
    MixserveError,
    Overloaded,
    SessionTaken,
    UnknownSession,
)
from mixserve_client.wire.session import (
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
_MOST = 10_000
_BUSY_S = 60.0


class _Key(NamedTuple):
    mixture: str
    name: str


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
        if not 0 < ttl_s < math.inf:
            raise ValueError(f"session_ttl_s must be a positive, finite number of seconds, got {ttl_s}")
        self._nodes = dict(nodes)
        self._folder = folder
        self._checkpoints = {name: Checkpoints(folder, name) for name in nodes} if folder is not None else {}
        self._ttl_s = ttl_s
        self._journal_days = journal_days
        self._lock = threading.Lock()
        self._sessions: dict[_Key, Session] = {}
        self._heard: dict[_Key, float] = {}  # when, of holders whose session is to be read from its journal again
        self._started = time.monotonic()
        self._swept = self._touched = -_HOUR_S

    def open(self, request: OpenRequest) -> OpenedSession:
        """Let the one who asks hold a session, which is gone on with or begun.

        Raises SessionTaken where another holds it, FingerprintMismatch, CorruptCheckpoint, StorageFailed, Overloaded.
        """
        self.end_silent()
        key = _Key(request.mixture, request.name)
        with self._entered(key, opening=request) as session:
            if session.lease == request.lease:  # this request came before
                session.renew()
                return self._opened(session)
            if session.lease and self._is_live(session) and not request.take_over:
                session.dropped = session.is_converted
                raise SessionTaken(
                    f"the session {key.name!r} of the mixture {key.mixture!r} is held by "
                    f"{session.holder or 'another client'}, heard of {_silent_s(session):.0f} s ago; open it with "
                    f"take_over=True to take it, or when its holder has been silent for {self._ttl_s:.0f} s"
                )
            if request.fresh and not session.is_new:
                begun = self._begun(key)
                begun.hold(request)
                with self._lock:
                    self._sessions[key] = begun
                session.dropped = True
                return self._opened(begun)
            session.hold(request)
            return self._opened(session)

    def call(self, request: CallRequest) -> CallReply:
        """Do one thing with a session. Raises UnknownSession, and what `Session.call` raises."""
        if request.operation in ABOUT_CHECKPOINTS and not request.lease:
            on = Subject(request.name, self._nodes[request.mixture], self._checkpoints.get(request.mixture))
            return CallReply(operation_named(request.operation).run(on, request.arguments), False, 0, 0)
        with self._entered(_Key(request.mixture, request.name)) as session:
            return session.call(request)

    def renew(self, held: Iterable[HeldSession]) -> None:
        """The holders of these sessions live; those that are not held under the given leases are passed over."""
        now = time.monotonic()
        touches, self._touched = (True, now) if now - self._touched > _HOUR_S else (False, self._touched)
        for mixture, name, lease in held:
            key = _Key(mixture, name)
            session = self._sessions.get(key)
            if session is not None and session.lease == lease and not touches:
                session.renew()  # though it may be busy
                continue
            with suppress(MixserveError), self._entered(key) as session:
                if session.lease == lease:
                    session.renew()
                    session.touch()

    def release(self, held: Iterable[HeldSession]) -> None:
        """Let go of these sessions; those that are not held under the given leases are passed over."""
        for mixture, name, lease in held:
            with suppress(MixserveError), self._entered(_Key(mixture, name)) as session:
                if session.lease == lease:
                    session.release()
                    session.dropped = self._folder is not None

    def described(self, mixture: str = "") -> list[SessionDescription]:
        """What is known of the sessions of a mixture, or of all."""
        with self._lock:
            in_memory = list(self._sessions.items())
        known = {key: self._described(key, session) for key, session in in_memory}
        if self._folder is not None:
            for name in self._nodes:
                kept = {path.name for path in _files(self._folder.journals(name))}
                for session in sorted(kept | set(self._checkpoints[name].sessions())):
                    if (key := _Key(name, session)) not in known:
                        known[key] = self._described_on_disk(key)
        return [known[key] for key in sorted(known) if mixture in ("", key.mixture)]

    def end_silent(self) -> None:
        """Let sessions leave memory whose holders are silent, and throw away journals that nobody used for long."""
        with self._lock:
            silent = [(key, session) for key, session in self._sessions.items() if not self._is_live(session)]
        for key, session in silent:
            if session.lock.acquire(blocking=False):
                try:
                    if not self._is_live(session):
                        session.dropped = True
                        self._forget(key, session)
                finally:
                    session.lock.release()
        if self._folder is not None and time.monotonic() - self._swept >= _HOUR_S:
            self._swept = time.monotonic()
            self._throw_away(self._folder)

    def close(self) -> None:
        """Let another server have the folder."""
        if self._folder is not None:
            self._folder.close()

    @contextmanager
    def _entered(self, key: _Key, opening: OpenRequest | None = None) -> Generator[Session]:
        """The session of that name, with its lock; `opening` begins one that is not known.

        Raises UnknownSession, Overloaded where others keep it busy, and what loading it raises.
        """
        while True:
            session = self._found(key, opening)
            if not session.lock.acquire(timeout=_BUSY_S):
                raise Overloaded(f"the session {key.name!r} has been busy for {_BUSY_S:.0f} s; ask again later")
            try:
                if session.dropped:  # while this call waited
                    continue
                try:
                    yield session
                finally:
                    if session.dropped:
                        self._forget(key, session)
                return
            finally:
                session.lock.release()

    def _found(self, key: _Key, opening: OpenRequest | None) -> Session:
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                session = self._loaded(key, opening)
                self._sessions[key] = session
            return session

    def _loaded(self, key: _Key, opening: OpenRequest | None) -> Session:
        if len(self._sessions) >= _MOST:
            raise Overloaded(f"this server holds {_MOST} sessions, as many as it can; let go of some", retry_after_s=60)
        journal = self._journal(key)
        if journal is not None:
            try:
                strict = opening is None or opening.strict
                checkpoints = self._checkpoints[key.mixture]
                node = self._nodes[key.mixture].clone()
                renewed = self._heard.pop(key, self._started)
                session = Session.resumed(key.name, node, journal, checkpoints, renewed, strict=strict)
                if not session.lease:
                    session.renewed = time.monotonic() - _age_s(journal.path)
                return session
            except FileNotFoundError:
                pass
            except OSError as error:
                raise CorruptCheckpoint(f"the journal {journal.path} cannot be read: {error.strerror}") from error
            except (CorruptCheckpoint, FingerprintMismatch):
                if opening is None or not opening.fresh:
                    raise
        if opening is None:
            known = ", ".join(map(repr, self._names(key.mixture))) or "none at all"
            raise UnknownSession(f"the mixture {key.mixture!r} has no session {key.name!r}, but {known:.1000}")
        return self._begun(key)

    def _begun(self, key: _Key) -> Session:
        node = self._nodes[key.mixture].clone()
        return Session(key.name, node, self._journal(key), self._checkpoints.get(key.mixture), time.monotonic())

    def _journal(self, key: _Key) -> Journal | None:
        if self._folder is None:
            return None
        return Journal(self._folder.journals(key.mixture) / key.name, self._folder)

    def _forget(self, key: _Key, session: Session) -> None:
        with self._lock:
            if self._sessions.get(key) is session:
                del self._sessions[key]
                if session.lease and self._is_live(session):
                    self._heard[key] = session.renewed

    def _is_live(self, session: Session) -> bool:
        return _silent_s(session) < self._ttl_s

    def _opened(self, session: Session) -> OpenedSession:
        return OpenedSession(self._ttl_s, session.sequence, session.index, session.epoch, session.was_resumed)

    def _described(self, key: _Key, session: Session) -> SessionDescription:
        checkpoints = self._checkpoints[key.mixture].names(key.name) if self._checkpoints else ()
        holder = session.holder if self._is_live(session) else ""
        return SessionDescription(*key, holder, _silent_s(session), session.index, session.epoch, checkpoints)

    def _described_on_disk(self, key: _Key) -> SessionDescription:
        journal, checkpoints = self._journal(key), self._checkpoints[key.mixture].names(key.name)
        assert journal is not None
        try:
            record, state = read_record(journal)
            idle_s = _age_s(journal.path)
        except FileNotFoundError:  # by now checkpoints are all that there is of it
            return SessionDescription(*key, "", 0.0, 0, 0, checkpoints, saved_only=True)
        except (CorruptCheckpoint, OSError) as error:
            return SessionDescription(*key, "", 0.0, 0, 0, checkpoints, str(error))
        lives = time.monotonic() - self._started < self._ttl_s
        holder = record["holder"] if lives else ""
        return SessionDescription(*key, holder, idle_s, state["index"], state["epoch"], checkpoints)

    def _names(self, mixture: str) -> list[str]:
        """Of the sessions in memory and on disk."""
        kept = _files(self._folder.journals(mixture)) if self._folder is not None else []
        return sorted({key.name for key in self._sessions if key.mixture == mixture} | {path.name for path in kept})

    def _throw_away(self, folder: StateFolder) -> None:
        oldest = time.time() - self._journal_days * _DAY_S
        for mixture in self._nodes:
            for path in _files(folder.journals(mixture)):
                with self._lock, suppress(OSError):
                    if _Key(mixture, path.name) not in self._sessions and path.stat().st_mtime < oldest:
                        folder.remove(path)
                        _logger.info("threw away the journal %s: nobody used it for days", path)


def _silent_s(session: Session) -> float:
    return time.monotonic() - session.renewed


def _age_s(path: Path) -> float:
    return max(0.0, time.time() - path.stat().st_mtime)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
