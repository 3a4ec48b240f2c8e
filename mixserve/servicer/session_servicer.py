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
from mixserve.servicer.mixtures import Mixtures
from mixserve.sessions import Sessions
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
        self._handlers: dict[str, Callable[[bytes], bytes]] = {
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

    def handle(self, method: str, request: bytes) -> bytes:
        """The reply to `request`. Raises as `MixServicer.handle` does."""
        with error_boundary(method):
            if method != methods.CALL_SESSION:  # its states and statistics may be large
                check_small(method, request)
            try:
                return self._handlers[method](request)
            except StorageFailed as error:  # its message says what the operator, rather than the client, can do
                self._not_stored.warn("%s", error, extra=error_fields(error))
                raise

    def end_silent(self) -> None:
        """As `Sessions.end_silent`."""
        self._sessions.end_silent()

    def close(self) -> None:
        """Release the state folder, so that another server can use it."""
        self._sessions.close()

    def _open(self, request: bytes) -> bytes:
        wanted = decode_open_request(request)
        mixture = self._mixtures.get_expected(wanted.mixture, wanted.expected_fingerprint)
        _note_mixture(mixture.name)
        return encode_opened(self._sessions.open(replace(wanted, mixture=mixture.name)))

    def _renew(self, request: bytes) -> bytes:
        self._sessions.renew(self._decode_known(request))
        return b""

    def _release(self, request: bytes) -> bytes:
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

    def _list(self, request: bytes) -> bytes:
        name = decode_list_request(request)
        names = [self._mixtures.get(name).name] if name else self._mixtures.names
        return encode_sessions(found for mixture in names for found in self._sessions.describe(mixture))

    def _call(self, request: bytes) -> bytes:
        unread = decode_call(request)
        unread = replace(unread, mixture=self._mixtures.get(unread.mixture).name)
        _note_mixture(unread.mixture)
        self._sessions.check(unread)  # before the arguments are read, which may be 16 MiB
        wanted = unread.read()
        reply = encode_call_reply(self._sessions.call(wanted))
        if wanted.operation in _AUDITED:
            with self._counting:
                self.checkpoints[wanted.mixture, wanted.operation.removesuffix("_checkpoint")] += 1
            _audit(wanted)
        return reply


def _note_mixture(mixture: str) -> None:
    call = current_caller().call
    if call is not None:
        call.mixture = mixture


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
