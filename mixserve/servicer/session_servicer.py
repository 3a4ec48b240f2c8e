"""The path of a stateful method and a request's bytes -> the reply's bytes, from the server's sessions."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from mixserve.access.audit import audit
from mixserve.access.call import error_fields
from mixserve.access.identity import current_caller
from mixserve.error_boundary import error_boundary
from mixserve.reply_room import reserve_room
from mixserve.servicer.mixtures import Mixtures
from mixserve.servicer.session_work import ALL, InCaller, SessionCall, SessionWork, key_of
from mixserve.sessions import Sessions
from mixserve.sessions.operations import ABOUT_DISKS
from mixserve_client.errors import InvalidRequest, PermissionDenied, StorageFailed, UnknownMixture
from mixserve_client.limited_log import LimitedLog
from mixserve_client.schema.sessions import CallRequest, HeldSession
from mixserve_client.wire import methods
from mixserve_client.wire.request import check_small
from mixserve_client.wire.session import (
    decode_call,
    decode_held,
    decode_list_request,
    decode_open_request,
    encode_call_reply,
    encode_opened,
    encode_sessions,
)

_logger = logging.getLogger("mixserve")


class SessionServicer:
    """Answers the calls of StateService. Thread-safe."""

    def __init__(self, mixtures: Mixtures, sessions: Sessions):
        self._mixtures = mixtures
        self._sessions = sessions
        self._not_stored = LimitedLog(_logger, "storage")
        self._counting = threading.Lock()
        self.counts = sessions.counts
        self.checkpoints = Counter[tuple[str, str]]()  # what was done to them, by mixture and operation
        self._handlers: dict[str, Callable[[bytes, SessionWork], bytes]] = {
            methods.OPEN_SESSION: self._open,
            methods.RENEW_SESSIONS: self._renew,
            methods.RELEASE_SESSIONS: self._release,
            methods.LIST_SESSIONS: self._list,
            methods.CALL_SESSION: self._call,
        }

    @property
    def methods(self) -> tuple[str, ...]:
        """The paths of the methods for `handle`."""
        return tuple(self._handlers)

    def handle(self, method: str, request: bytes, work: SessionWork | None = None) -> bytes:
        """The reply to `request`, of a call that runs where `work` says (None: in this thread, without limits).

        Raises as `MixServicer.handle` does.
        """
        with error_boundary(method):
            if method != methods.CALL_SESSION:  # its states and statistics may be large
                check_small(method, request)
            try:
                return self._handlers[method](request, work or _IN_CALLER)
            except StorageFailed as error:  # its message says what the operator, rather than the client, can do
                self._not_stored.warn("%s", error, extra=error_fields(error))
                raise

    def end_silent(self) -> None:
        """As `Sessions.end_silent`."""
        self._sessions.end_silent()

    def close(self) -> None:
        """Release the state folder, so that another server can use it."""
        self._sessions.close()

    def _open(self, request: bytes, work: SessionWork) -> bytes:
        wanted = decode_open_request(request)
        mixture = self._mixtures.get_expected(wanted.mixture, wanted.expected_fingerprint)
        _note_mixture(mixture.name)
        wanted = replace(wanted, mixture=mixture.name)
        opening = SessionCall(
            f"the opening of the session {wanted.name!r}",
            is_read=True,  # of its place among the records
            run=lambda: self._sessions.open(wanted),
            key=key_of(request, is_numbered=True),  # by its lease
        )
        with work.working(methods.OPEN_SESSION, mixture.name):
            return encode_opened(work.run(mixture.name, opening))

    def _renew(self, request: bytes, _: SessionWork) -> bytes:
        self._sessions.renew(self._decode_known(request))
        return b""

    def _release(self, request: bytes, _: SessionWork) -> bytes:
        self._sessions.release(self._decode_known(request))
        return b""

    def _decode_known(self, request: bytes) -> list[HeldSession]:
        known: list[HeldSession] = []
        for held in decode_held(request):
            # Its mixture may be gone since a restart, or not be the caller's any more. One such lease must not fail the
            # renewal of the others.
            with suppress(UnknownMixture, InvalidRequest, PermissionDenied):
                known.append(held._replace(mixture=self._mixtures.get(held.mixture).name))
        return known

    def _list(self, request: bytes, work: SessionWork) -> bytes:
        name = decode_list_request(request)
        names = [self._mixtures.get(name).name] if name else self._mixtures.names
        with work.working(methods.LIST_SESSIONS, names[0] if name else ALL):
            return encode_sessions(found for mixture in names for found in self._sessions.describe(mixture))

    def _call(self, request: bytes, work: SessionWork) -> bytes:
        unread = decode_call(request)
        mixture = self._mixtures.get(unread.mixture).name
        unread = replace(unread, mixture=mixture)
        _note_mixture(mixture)
        what = f"{unread.operation:.100} of the session {unread.name!r}"
        with work.working(methods.CALL_SESSION, mixture):
            # Before the arguments are read, which may be 16 MiB. The session may have to be loaded for that.
            if not self._sessions.check(unread):
                work.run(mixture, SessionCall(what, is_read=True, run=lambda: self._sessions.load(unread)))
            wanted = unread.read()
            if size := self._sessions.reply_bytes(wanted):
                reserve_room(size)
            call = SessionCall(
                what,
                is_read=wanted.operation not in ABOUT_DISKS,
                run=lambda: self._sessions.call(wanted),
                key=key_of(request, is_numbered=wanted.sequence > 0),
            )
            reply = encode_call_reply(work.run(mixture, call))
        if wanted.operation in _AUDITED:
            with self._counting:
                self.checkpoints[wanted.mixture, wanted.operation.removesuffix("_checkpoint")] += 1
            _audit(wanted)
        return reply


def _note_mixture(mixture: str) -> None:
    call = current_caller().call
    if call is not None:
        call.mixture = mixture


_IN_CALLER = InCaller()
_AUDITED = {
    "save_checkpoint": "checkpoint-saved",
    "restore_checkpoint": "checkpoint-restored",
    "delete_checkpoint": "checkpoint-deleted",
}


def _audit(answered: CallRequest) -> None:
    """Record what the call did to checkpoints. A call that is sent again, since its answer was lost, has two lines."""
    given = answered.arguments
    about = {"checkpoint": given.get("name"), "of": given.get("session"), "keep_last": given.get("keep_last")}
    audit(_AUDITED[answered.operation], mixture=answered.mixture, session=answered.name, **about)
