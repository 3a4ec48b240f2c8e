"""A session: a private copy of a mixture's node, moved by numbered calls. Each is in the journal before its answer."""

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from mixserve.error_boundary import error_boundary
from mixserve.module import kept_statistics
from mixserve.module.state import value_bytes
from mixserve.node import MixDataSourcesNode
from mixserve.sessions.checkpoints import Checkpoints
from mixserve.sessions.journal import Journal
from mixserve.sessions.operations import (
    Ended,
    Operation,
    Run,
    Subject,
    find_operation,
    freeze_state,
    frozen_bytes,
    take_over_state,
)
from mixserve.sessions.record import FORMAT, LEVELS, Record, hashes_of, parts_of, read_record
from mixserve.sessions.storage import storing
from mixserve_client.errors import (
    CorruptCheckpoint,
    FingerprintMismatch,
    InvalidRequest,
    MixserveError,
    SessionTaken,
    UnknownCheckpoint,
    from_wire,
)
from mixserve_client.schema.sessions import CallReply, CallRequest, OpenRequest
from mixserve_client.wire.session import UnreadCall
from mixserve_client.wire.value import encode_value

_NO_LEASE = ""
_TOUCH_EVERY_S = 3600.0
_MESSAGE = 2000  # characters of an error's message that a session keeps, to repeat it
# Smaller answers are kept without a check of room: sessions at the limit must be able to go on.
_SMALL_BYTES = 64 << 10

CheckRoom = Callable[[int, int], None]


class Session:
    """For one thread at a time. If `dropped`, do not use it again: load it from its journal.

    Its record and the node's state are all that another process needs to resume: the holder, the position, and what is
    needed to repeat the last answer.
    """

    def __init__(
        self,
        name: str,
        node: MixDataSourcesNode,
        journal: Journal | None,
        checkpoints: Checkpoints | None,
        renewed: float,
        check_room: CheckRoom = lambda _before, _after: None,
    ):
        """The session makes its own copy of `node`. `check_room(kept, wanted)` raises StorageFailed if the session,
        which keeps so many bytes, has no room for the wanted ones."""
        self.name = name
        self.dropped = False
        self.is_new = True  # until a client holds it
        self.is_converted = False  # from another mixture's order, and not yet in the journal
        self.renewed = renewed
        self.kept_bytes = 0  # of statistics, and of the last answer
        self._check_room = check_room
        self._journal = journal
        self._checkpoints = checkpoints
        self._node = node.clone()
        self._touched = -_TOUCH_EVERY_S
        self._written: dict[str, bytes] = {}
        self._record: Record = {
            "format": FORMAT,
            "session": name,
            "fingerprint": node.mixture.fingerprint,
            "lease": _NO_LEASE,
            "holder": "",
            "resumed": False,
            "sequence": 0,
            "last": {},
        }

    @staticmethod
    def resume(
        name: str,
        node: MixDataSourcesNode,
        journal: Journal,
        checkpoints: Checkpoints | None,
        renewed: float,
        check_room: CheckRoom = lambda _before, _after: None,
        *,
        strict: bool,
    ) -> "Session":
        """The session in a journal.

        Raises FileNotFoundError without a journal, CorruptCheckpoint for a damaged one, StorageFailed if there is no
        room for the session, and, if `strict`, FingerprintMismatch if the mixture has changed.
        """
        record, state = read_record(journal)
        current = node.mixture.fingerprint
        if record["session"] != name:
            if record["session"].casefold() == name.casefold():  # the file system ignores case
                raise InvalidRequest(
                    f"the name {name!r} differs from that of the session {record['session']!r} by case alone"
                )
            raise CorruptCheckpoint(
                f"the journal {journal.path} belongs to the session {record['session']!r}, not to {name!r}: was it "
                "copied? Open the session with fresh=True to start it over"
            )
        if strict and record["fingerprint"] != current:
            raise FingerprintMismatch(
                f"the session {name!r} belongs to a mixture with the fingerprint {record['fingerprint']}, this one "
                f"has {current}: its records differ. Open it with fresh=True to start it over, or strict=False "
                "to resume in this mixture at the same index"
            )
        session = Session(name, node, journal, checkpoints, renewed, check_room)
        state = freeze_state(state)
        kept_bytes = frozen_bytes(state) + value_bytes(record["last"])
        check_room(0, kept_bytes)
        try:
            take_over_state(session._node, state, strict=strict)
        except InvalidRequest as error:
            raise CorruptCheckpoint(
                f"the journal {journal.path} is damaged: {error!s:.500}. Open the session with fresh=True, and "
                "restore a checkpoint"
            ) from error
        session.kept_bytes = kept_bytes
        session.is_new, session.is_converted = False, record["fingerprint"] != current
        session._written = hashes_of(parts_of(record, state))
        session._record = record | {"fingerprint": current}
        return session

    @property
    def index(self) -> int:
        """The node's."""
        return int(self._node.index.get_value())

    @property
    def epoch(self) -> int:
        """The node's."""
        return int(self._node.epoch.get_value())

    @property
    def lease(self) -> str:
        """The holder's lease; empty if the session is free."""
        return self._record["lease"]

    @property
    def holder(self) -> str:
        """The holder's own description of itself."""
        return self._record["holder"]

    @property
    def sequence(self) -> int:
        """The number of the last answered call."""
        return self._record["sequence"]

    @property
    def was_resumed(self) -> bool:
        """Whether the session existed when its holder opened it."""
        return self._record["resumed"]

    def renew(self) -> None:
        """Renew the holder's lease."""
        self.renewed = time.monotonic()

    def hold(self, request: OpenRequest) -> None:
        """Give the session to the client that sent `request`. Raises StorageFailed."""
        self.renew()
        self._write({"lease": request.lease, "holder": request.holder, "resumed": not self.is_new})
        self.is_new = self.is_converted = False

    def release(self) -> None:
        """End the holder's lease. Raises StorageFailed."""
        self._write({"lease": _NO_LEASE, "holder": ""})

    def touch(self) -> None:
        """Mark the journal as in use, or the server would delete it when it is old. Raises StorageFailed."""
        if self._journal is not None and time.monotonic() - self._touched >= _TOUCH_EVERY_S:
            self._touched = time.monotonic()
            with storing(f"the journal of the session {self.name!r}"):
                self._journal.touch()

    def call(self, request: CallRequest) -> CallReply:
        """Run the operation, or repeat the last answer if the request has the last call's number.

        Raises what the operation raises, SessionTaken and StorageFailed. The session is unchanged then, except by an
        operation that `counts`.
        """
        operation = find_operation(request.operation)
        self.check_caller(request, operation)
        if request.lease:
            self.renew()
        if not request.sequence:
            return self._reply(self._run(operation.run, request))
        asked = hashlib.sha256(encode_value([request.operation, request.arguments], more_levels=LEVELS)).hexdigest()
        try:
            if request.sequence <= self.sequence:
                return self._repeat_answer(operation, request, asked)
            return self._answer(operation, request, asked)
        except BaseException:
            # The node may have moved by half. The journal has the session as it was before, and the next call loads it.
            self.dropped = self.dropped or (self._journal is not None and not operation.counts)
            raise

    def check_caller(self, call: CallRequest | UnreadCall, operation: Operation) -> None:
        """Raises SessionTaken for a lease that is not the holder's, and InvalidRequest for a missing one."""
        if call.lease and call.lease != self.lease:
            raise self._taken_error()
        if operation.moves and not call.sequence:
            raise InvalidRequest(f"{call.operation} moves the session: it needs the holder's lease and a sequence")

    def _answer(self, operation: Operation, request: CallRequest, asked: str) -> CallReply:
        last: Record = {"asked": asked}
        # Not the batch, which may have 256 MiB: the place before it takes a few hundred bytes and gives it again.
        if operation.reads:
            last["place"] = self._node.get_place()
        refusal: MixserveError | None = None
        value: Any = None
        try:
            value = self._run(operation.foretold or operation.run, request)
        except MixserveError as error:
            if not operation.counts:
                raise
            refusal, last["refusal"] = error, [type(error).__name__, f"{error!s:.{_MESSAGE}}"]
        reply = self._reply(value)
        if operation.again is None:
            last["value"] = reply.value
        kept_bytes = sum(map(frozen_bytes, kept_statistics(self._node))) + (last_bytes := value_bytes(last))
        if last_bytes > _SMALL_BYTES:
            self._check_room(self.kept_bytes, kept_bytes)
        # Before the answer: a call that is answered and then lost would give the trainer the same records twice.
        self._write({"sequence": request.sequence, "last": last})
        self.kept_bytes = kept_bytes
        if refusal is not None:
            try:
                raise refusal
            finally:
                del refusal  # as in error_boundary: its traceback leads to this frame
        if operation.foretold is not None:
            self._run(operation.run, request)
        return reply

    def _repeat_answer(self, operation: Operation, request: CallRequest, asked: str) -> CallReply:
        last = self._record["last"]
        if request.sequence < self.sequence or last.get("asked") != asked:
            raise InvalidRequest(
                f"sequence must be larger than {self.sequence}, that of the last call, or equal with the same "
                f"operation and arguments; got {request.sequence} for {request.operation}"
            )
        if "refusal" in last:
            name, message = last["refusal"]
            raise from_wire(name, "", message)
        if operation.foretold is not None:
            # The server may have been killed between the journal and the deletion. Only the very checkpoint that the
            # answer describes is deleted: another may have been saved under its name since.
            with suppress(UnknownCheckpoint):
                if self._run(operation.foretold, request) == last["value"]:
                    self._run(operation.run, request)
        if operation.again is None:
            return self._reply(last["value"])
        if not operation.reads:
            return self._reply(self._run(operation.again, request))
        place = self._node.get_place()
        try:
            self._node.set_place(last["place"])
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptCheckpoint(
                f"the session {self.name!r} cannot repeat its last answer: {error!s:.300}. Make another call"
            ) from error
        try:
            value = self._run(operation.again, request)
        finally:
            self._node.set_place(place)
        return self._reply(value)

    def _run(self, run: Run, request: CallRequest) -> Any:
        with error_boundary(f"{request.operation} of the session {self.name!r}", request.operation):
            check_room = partial(self._check_room, self.kept_bytes)
            return run(Subject(self.name, self._node, self._checkpoints, check_room), request.arguments)

    def _reply(self, value: Any) -> CallReply:
        ended = isinstance(value, Ended)
        return CallReply(None if ended else value, ended, self.index, self.epoch)

    def _write(self, changes: Record) -> None:
        """Change the record, and write the changed parts of it and of the node's state. Raises StorageFailed."""
        record = self._record | changes
        if self._journal is not None:
            parts = parts_of(record, self._node.get_state())
            hashes = hashes_of(parts)
            with storing(f"the journal of the session {self.name!r}"):
                try:
                    if not self._written or self._journal.is_long:
                        self._journal.begin(encode_value(parts, more_levels=LEVELS))
                    else:
                        new = {path: part for path, part in parts.items() if self._written.get(path) != hashes[path]}
                        self._journal.append(encode_value(new, more_levels=LEVELS))
                except BaseException:  # the file may have the old or the new record: only reading it tells
                    self.dropped = True
                    raise
            self._written = hashes
        self._record = record

    def _taken_error(self) -> SessionTaken:
        by = "was released, or started over" if not self.lease else f"is held by {self.holder or 'another client'} now"
        return SessionTaken(
            f"the session {self.name!r} {by}: this client no longer holds it. Open it again, with take_over=True to "
            "take it back"
        )
