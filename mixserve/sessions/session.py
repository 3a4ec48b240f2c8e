"""A session: a private copy of a mixture's node, moved by numbered calls, each written down before it is answered."""

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
    freeze_state,
    frozen_bytes,
    operation_named,
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
from mixserve_client.wire.value import encode_value

_NOBODY = ""
_TOUCHED_EVERY_S = 3600.0
_MESSAGE = 2000  # characters of a refusal that are kept, to be said again
_SMALL_BYTES = 64 << 10  # an answer that is kept without asking for room

CheckRoom = Callable[[int, int], None]


class Session:
    """Used by one thread at a time; `dropped` says that it is not to be used any more, but loaded again.

    Its record is all that another process needs to go on: who holds it, the node's state, and how the last numbered
    call is answered again. A read is answered again from the place where it began.
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
        """`node` is the mixture's: the session takes a copy of it. `check_room` is told how many bytes the session
        keeps and would keep, and raises StorageFailed where that is too many."""
        self.name = name
        self.dropped = False
        self.is_new = True  # until somebody holds it
        self.is_converted = False  # from another mixture's order, and not yet written down
        self.renewed = renewed
        self.kept_bytes = 0  # of statistics, and of the last answer
        self._check_room = check_room
        self._journal = journal
        self._checkpoints = checkpoints
        self._node = node.clone()
        self._touched = -_TOUCHED_EVERY_S
        self._written: dict[str, bytes] = {}
        self._record: Record = {
            "format": FORMAT,
            "session": name,
            "fingerprint": node.mixture.fingerprint,
            "lease": _NOBODY,
            "holder": "",
            "resumed": False,
            "sequence": 0,
            "last": {},
        }

    @staticmethod
    def resumed(
        name: str,
        node: MixDataSourcesNode,
        journal: Journal,
        checkpoints: Checkpoints | None,
        renewed: float,
        check_room: CheckRoom = lambda _before, _after: None,
        *,
        strict: bool,
    ) -> "Session":
        """The session that a journal tells of.

        Raises FileNotFoundError if there is none, CorruptCheckpoint for a damaged one, StorageFailed if there is no
        room for it, and FingerprintMismatch if the mixture is another by now; that only if `strict`.
        """
        record, state = read_record(journal)
        current = node.mixture.fingerprint
        if record["session"] != name:
            if record["session"].casefold() == name.casefold():  # a file system that does not tell them apart
                raise InvalidRequest(
                    f"the name {name!r} differs from that of the session {record['session']!r} by case alone"
                )
            raise CorruptCheckpoint(
                f"the journal {journal.path} is that of the session {record['session']!r}, and not of {name!r}: was it "
                "copied? Open the session with fresh=True to begin anew"
            )
        if strict and record["fingerprint"] != current:
            raise FingerprintMismatch(
                f"the session {name!r} was begun in a mixture with the fingerprint {record['fingerprint']}, this one "
                f"has {current}: its records are others. Open it with fresh=True to begin anew, or strict=False "
                "to go on in this mixture from the same index"
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
        """That of the holder, empty for nobody."""
        return self._record["lease"]

    @property
    def holder(self) -> str:
        """Who holds it, as they said."""
        return self._record["holder"]

    @property
    def sequence(self) -> int:
        """The number of the last call that was answered."""
        return self._record["sequence"]

    @property
    def was_resumed(self) -> bool:
        """Whether it was known when its holder opened it."""
        return self._record["resumed"]

    def renew(self) -> None:
        """The holder lives."""
        self.renewed = time.monotonic()

    def hold(self, request: OpenRequest) -> None:
        """Give the session to whoever made `request`. Raises StorageFailed."""
        self.renew()
        self._write({"lease": request.lease, "holder": request.holder, "resumed": not self.is_new})
        self.is_new = self.is_converted = False

    def release(self) -> None:
        """Nobody holds it from here on. Raises StorageFailed."""
        self._write({"lease": _NOBODY, "holder": ""})

    def touch(self) -> None:
        """Keep the journal from being thrown away as old. Raises StorageFailed."""
        if self._journal is not None and time.monotonic() - self._touched >= _TOUCHED_EVERY_S:
            self._touched = time.monotonic()
            with storing(f"the journal of the session {self.name!r}"):
                self._journal.touch()

    def call(self, request: CallRequest) -> CallReply:
        """Do what is asked, or answer the last call again.

        Raises what the operation raises, SessionTaken and StorageFailed; then nothing has moved.
        """
        operation = operation_named(request.operation)
        if request.lease:
            if request.lease != self.lease:
                raise self._taken()
            self.renew()
        if not request.sequence:
            if operation.moves:
                raise InvalidRequest(
                    f"{request.operation} moves the session: it needs the holder's lease and a sequence"
                )
            return self._reply(self._run(operation.run, request))
        asked = hashlib.sha256(encode_value([request.operation, request.arguments], more_levels=LEVELS)).hexdigest()
        try:
            if request.sequence <= self.sequence:
                return self._answered_again(operation, request, asked)
            return self._answered(operation, request, asked)
        except BaseException:
            # What has moved by halves is forgotten: the journal has the session as it was.
            self.dropped = self.dropped or (self._journal is not None and not operation.counts)
            raise

    def _answered(self, operation: Operation, request: CallRequest, asked: str) -> CallReply:
        last: Record = {"asked": asked}
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
        self._write({"sequence": request.sequence, "last": last})
        self.kept_bytes = kept_bytes
        if refusal is not None:
            raise refusal
        if operation.foretold is not None:
            self._run(operation.run, request)
        return reply

    def _answered_again(self, operation: Operation, request: CallRequest, asked: str) -> CallReply:
        last = self._record["last"]
        if request.sequence < self.sequence or last.get("asked") != asked:
            raise InvalidRequest(
                f"sequence must be larger than that of the last call, {self.sequence}, or be that one with the call's "
                f"operation and arguments; got {request.sequence} for {request.operation}"
            )
        if "refusal" in last:
            name, message = last["refusal"]
            raise from_wire(name, "", message)
        if operation.foretold is not None:
            with suppress(UnknownCheckpoint):
                if self._run(operation.foretold, request) == last["value"]:  # written down, and then not done
                    self._run(operation.run, request)
        if operation.again is None:
            return self._reply(last["value"])
        if not operation.reads:
            return self._reply(self._run(operation.again, request))
        stands = self._node.get_place()
        try:
            self._node.set_place(last["place"])
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptCheckpoint(
                f"the session {self.name!r} cannot go back to its last answer: {error!s:.300}. Make another call"
            ) from error
        try:
            value = self._run(operation.again, request)
        finally:
            self._node.set_place(stands)
        return self._reply(value)

    def _run(self, run: Run, request: CallRequest) -> Any:
        with error_boundary(f"{request.operation} of the session {self.name!r}"):
            check_room = partial(self._check_room, self.kept_bytes)
            return run(Subject(self.name, self._node, self._checkpoints, check_room), request.arguments)

    def _reply(self, value: Any) -> CallReply:
        ended = isinstance(value, Ended)
        return CallReply(None if ended else value, ended, self.index, self.epoch)

    def _write(self, changes: Record) -> None:
        """Change the record, and write down what is new in it and in the node's state. Raises StorageFailed."""
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
                except BaseException:
                    self.dropped = True
                    raise
            self._written = hashes
        self._record = record

    def _taken(self) -> SessionTaken:
        by = "was let go, or begun anew" if not self.lease else f"is held by {self.holder or 'another client'} now"
        return SessionTaken(
            f"the session {self.name!r} {by}: this client no longer moves it. Open it again, with take_over=True if it "
            "shall be taken back"
        )
