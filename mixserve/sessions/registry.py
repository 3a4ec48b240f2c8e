"""The sessions of a server, by mixture and name: who holds them, and for how long the server keeps them."""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from numbers import Real
from typing import Any

from mixserve.access.audit import audit
from mixserve.access.identity import current_caller
from mixserve.error_boundary import error_boundary
from mixserve.limits import ServerLimits
from mixserve.node import MixDataSourcesNode
from mixserve.sessions.checkpoints import Checkpoints
from mixserve.sessions.journal import Journal
from mixserve.sessions.journals import Journals
from mixserve.sessions.listing import Listing, age_s
from mixserve.sessions.loaded import Key, LoadedSessions
from mixserve.sessions.operations import (
    ABOUT_CHECKPOINTS,
    TELLS_STATISTICS,
    Subject,
    find_operation,
    reply_rows,
    row_bytes,
)
from mixserve.sessions.session import Session
from mixserve.sessions.storage import StateFolder
from mixserve_client.errors import (
    CorruptCheckpoint,
    FingerprintMismatch,
    InvalidRequest,
    MixserveError,
    SessionTaken,
    Unavailable,
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
_HOUR_S = 3600.0
_MOST_RELEASED = 1000
# A list that took longer than the first is given out again for so many times as long, the last at most.
_SLOW_LIST_S, _LISTED_FOR, _OLDEST_LIST_S = 0.1, 5.0, 2.0
_NAMED = 100  # sessions in an error message
_SWEEP_S = 2.0  # for the deletion of old journals in one go: each waits for the disk

_Names = Mapping[str, tuple[str, ...]]  # of checkpoints, by session


class Sessions:
    """Thread-safe. A session leaves memory when its holder is silent for `ttl_s` seconds."""

    def __init__(
        self,
        nodes: Mapping[str, MixDataSourcesNode],
        folder: StateFolder | None = None,
        *,
        ttl_s: float = TTL_S,
        journal_days: float = JOURNAL_DAYS,
        limits: ServerLimits | None = None,
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
        self._journals = None if folder is None else Journals(folder, nodes, journal_days)
        self._ttl_s = ttl_s
        self._journal_days = journal_days
        limits = ServerLimits() if limits is None else limits
        self._loaded = LoadedSessions(limits.sessions, kept=folder is not None, ttl_s=ttl_s)
        self._listing = Listing()
        # Lists that took long, by mixture: until when they may be given out again, and the list.
        self._lists: dict[str, tuple[float, list[SessionDescription]]] = {}
        # Leases that were released. A session may be busy, or not open yet, when its release arrives.
        self._released: OrderedDict[str, None] = OrderedDict()
        self._started = time.monotonic()
        # The first deletion of old journals waits for one ttl_s: after a restart, holders need that to renew leases.
        self._swept = self._started + ttl_s - _HOUR_S
        self._old: Iterator[Key] = iter(())
        self._sweeping = threading.Lock()
        self._is_watched = False

    def open(self, request: OpenRequest) -> OpenedSession:
        """Give a session, known or new, to the client that sent `request`.

        Raises SessionTaken if another client holds it, FingerprintMismatch, CorruptCheckpoint, StorageFailed and
        Overloaded.
        """
        if self._is_watched:
            self._loaded.end_silent(time.monotonic() - self._ttl_s)  # makes room first
        else:  # in a process without a thread for that
            self._end_silent()
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

    def check(self, call: UnreadCall) -> bool:
        """Raises InvalidRequest, UnknownSession or SessionTaken for a call that cannot be made, whatever its arguments
        are. False if only `load` can tell."""
        operation = find_operation(call.operation)
        if (size := call.arguments_bytes) > FEW_BYTES and not operation.large:
            raise InvalidRequest(f"the arguments of {call.operation} must have at most {FEW_BYTES} bytes, got {size}")
        if call.operation in ABOUT_CHECKPOINTS and not call.lease:
            return True
        session = self._loaded.get(Key(call.mixture, call.name))
        if session is not None:
            session.check_caller(call, operation)
        return session is not None

    def load(self, call: UnreadCall) -> None:
        """Load the session of a call, and `check` it. Raises what that and loading the session raise."""
        with self._enter(Key(call.mixture, call.name)) as session:
            pass
        session.check_caller(call, find_operation(call.operation))

    def reply_bytes(self, call: CallRequest) -> int:
        """The bytes of the reply to a call that are known before it runs: of rows, states and statistics, about."""
        session, node = self._loaded.get(Key(call.mixture, call.name)), self._nodes[call.mixture]
        kept = session.kept_bytes if session is not None and call.operation in TELLS_STATISTICS else 0
        return kept + reply_rows(node, call.operation, call.arguments) * row_bytes(node)

    def call(self, request: CallRequest) -> CallReply:
        """Run one operation on a session. Raises UnknownSession, and what `Session.call` raises."""
        if request.operation in ABOUT_CHECKPOINTS and not request.lease:
            on = Subject(request.name, self._nodes[request.mixture], self._checkpoints.get(request.mixture))
            return CallReply(find_operation(request.operation).run(on, request.arguments), False, 0, 0)
        with self._enter(Key(request.mixture, request.name)) as session:
            return session.call(request)

    def counts(self) -> dict[tuple[str, str], int]:
        """How many sessions are in memory, by mixture, and "held" by a client or "free"."""
        found = {(mixture, state): 0 for mixture in self._nodes for state in ("held", "free")}
        for key, session in self._loaded.all():
            found[key.mixture, "held" if self._is_held(session) else "free"] += 1
        return found

    def renew(self, held: Iterable[HeldSession]) -> None:
        """Renew the leases of these sessions. Skips sessions that are not held under the given lease, and loads none.

        Stops when the caller is gone.
        """
        for mixture, name, lease in held:
            if not current_caller().is_wanted():
                return
            key = Key(mixture, name)
            # One at a time: a journal that cannot be read must not end the leases of the others.
            with suppress(MixserveError), error_boundary(f"the lease of the session {name!r}", "leases"):
                session = self._loaded.get(key)  # not entered: a long call must not end its own lease
                if session is not None:
                    if session.lease == lease:
                        session.renew()
                        session.touch()
                elif self._kept_lease(key) == lease:  # it left memory, or the server has restarted
                    self._loaded.saw(key)
                    if self._journals is not None:
                        self._journals.of(key).touch_if_old()

    def release(self, held: Iterable[HeldSession]) -> None:
        """Release these sessions. Skips sessions that are not held under the given lease.

        Stops when the caller is gone.
        """
        for mixture, name, lease in held:
            if not current_caller().is_wanted():
                return
            # First, so that the lease is void even if the session is busy.
            self._released[lease] = None
            while len(self._released) > _MOST_RELEASED:
                self._released.popitem(last=False)
            key = Key(mixture, name)
            with suppress(MixserveError), error_boundary(f"the release of the session {name!r}", "releases"):
                if self._loaded.get(key) is None and self._kept_lease(key) != lease:
                    continue
                with self._enter(key) as session:
                    if session.lease == lease:
                        audit("session-released", mixture=mixture, session=name, holder=session.holder)
                        session.release()
                        session.dropped = self._folder is not None  # its journal has it; else only memory does

    def _kept_lease(self, key: Key) -> str | None:
        """The lease in the journal of that session, None without one. Reads a journal only if it has changed."""
        if self._journals is None:
            return None
        try:
            return self._listing.summarise(self._journals.of(key)).lease
        except (FileNotFoundError, NotADirectoryError):
            return None

    def describe(self, mixture: str = "") -> list[SessionDescription]:
        """Descriptions of the sessions of `mixture`, or of all mixtures, sorted. Of thousands they may be
        two seconds old. Raises Unavailable if the caller is gone."""
        began = time.monotonic()
        until, known = self._lists.get(mixture, (began, []))
        if began < until:
            return known
        known = self._describe_all(mixture)
        took_s = (now := time.monotonic()) - began
        if took_s > _SLOW_LIST_S:  # so that callers who ask all the time do not keep a core busy
            self._lists[mixture] = now + min(_LISTED_FOR * took_s, _OLDEST_LIST_S), known
        return known

    def _describe_all(self, mixture: str) -> list[SessionDescription]:
        loaded = [(key, session) for key, session in self._loaded.all() if mixture in ("", key.mixture)]
        saved = {name: found.names_by_session() for name, found in self._checkpoints.items() if mixture in ("", name)}
        known = {key: self._describe(key, session, saved) for key, session in loaded}
        for name, checkpoints in saved.items():
            kept = set(self._journals.names(name)) if self._journals is not None else set[str]()
            for session in kept | set(checkpoints):
                if (key := Key(name, session)) not in known:
                    if not current_caller().is_wanted():
                        raise Unavailable("the caller has ended this call")
                    known[key] = self._describe_on_disk(key, checkpoints.get(session, ()))
        return [known[key] for key in sorted(known)]

    def end_silent(self) -> None:
        """Remove sessions with silent holders from memory; once an hour, delete old journals, for 2 s at a time.

        Call it every few seconds, always from the same thread; or never, then `open` does it.
        """
        self._is_watched = True
        self._lists.clear()
        self._end_silent()

    def _end_silent(self) -> None:
        self._loaded.end_silent(time.monotonic() - self._ttl_s)
        if self._journals is not None and self._sweeping.acquire(blocking=False):
            try:
                self._delete_old_journals(self._journals)
            finally:
                self._sweeping.release()

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
            raise self._unknown_error(key)
        if self._journals is not None and not self._journals.has(key):
            self._journals.add()
        return self._begin(key)

    def _begin(self, key: Key) -> Session:
        node, checkpoints = self._nodes[key.mixture], self._checkpoints.get(key.mixture)
        return Session(key.name, node, self._journal(key), checkpoints, time.monotonic(), self._loaded.check_room)

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
        return None if self._journals is None else self._journals.of(key)

    def _is_held(self, session: Session) -> bool:
        """Whether a client holds it that is not silent, and has not released it while it was busy."""
        return bool(session.lease) and session.lease not in self._released and self._is_live(session)

    def _is_live(self, session: Session) -> bool:
        return _silent_s(session) < self._ttl_s

    def _describe(self, key: Key, session: Session, saved: Mapping[str, _Names]) -> SessionDescription:
        checkpoints = saved.get(key.mixture, {}).get(key.name, ())
        holder = session.holder if self._is_held(session) else ""
        return SessionDescription(*key, holder, _silent_s(session), session.index, session.epoch, checkpoints)

    def _describe_on_disk(self, key: Key, checkpoints: tuple[str, ...]) -> SessionDescription:
        journal = self._journal(key)
        assert journal is not None
        try:
            found = self._listing.summarise(journal)
        except (FileNotFoundError, NotADirectoryError):  # only its checkpoints are left
            return SessionDescription(*key, "", 0.0, 0, 0, checkpoints, saved_only=True)
        # Within one ttl_s of a restart, its holder may still come back.
        seen = self._loaded.last_seen(key)
        silent_s = time.monotonic() - (self._started if seen is None else seen)
        holder = found.holder if silent_s < self._ttl_s else ""
        idle_s = found.idle_s if seen is None else min(found.idle_s, silent_s)
        return SessionDescription(*key, holder, idle_s, found.index, found.epoch, checkpoints, found.damaged)

    def _unknown_error(self, key: Key) -> UnknownSession:
        # Some names only: looking at all of them would cost much more than the call.
        names = {known.name for known in self._loaded.some(_NAMED) if known.mixture == key.mixture and known != key}
        if self._journals is not None:
            names.update(self._journals.some_names(key.mixture, _NAMED))
        known = ", ".join(map(repr, sorted(names))) or "none"
        return UnknownSession(f"the mixture {key.mixture!r} has no session {key.name!r}; it has {known:.1000}")

    def _delete_old_journals(self, journals: Journals) -> None:
        began = time.monotonic()
        if began - self._swept >= _HOUR_S:
            self._swept, self._old = began, journals.old()
        for key in self._old:
            # `without` keeps the session out of memory meanwhile: its next write would be lost.
            with self._loaded.without(key) as is_free, suppress(OSError):
                if is_free and journals.is_old(key):
                    path = journals.remove(key)
                    _logger.info("deleted the journal %s: not used for %g days", path, self._journal_days)
            if time.monotonic() - began > _SWEEP_S:
                return


def _audit_opening(key: Key, request: OpenRequest, held_by: str | None) -> None:
    event = "session-opened" if held_by is None else "session-taken-over"
    about = {"holder": request.holder or None, "from": held_by, "fresh": "yes" if request.fresh else None}
    audit(event, mixture=key.mixture, session=key.name, **about)


def _silent_s(session: Session) -> float:
    return time.monotonic() - session.renewed


def _is_positive(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and 0 < float(number) < math.inf
