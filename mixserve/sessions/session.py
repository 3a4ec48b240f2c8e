"""A session: a private copy of a mixture's node, moved by numbered calls, each written down before it is answered."""

import hashlib
import time
from contextlib import suppress
from typing import Any

from mixserve.faults import faults
from mixserve.node import MixDataSourcesNode
from mixserve.sessions.checkpoints import Checkpoints
from mixserve.sessions.journal import Journal
from mixserve.sessions.operations import Ended, Operation, Run, Subject, operation_named, take_over_state
from mixserve.sessions.storage import storing
from mixserve.state import State
from mixserve_client.errors import (
    CorruptCheckpoint,
    FingerprintMismatch,
    InvalidRequest,
    MixserveError,
    SessionTaken,
    UnknownCheckpoint,
    from_wire,
)
from mixserve_client.wire.session import CallReply, CallRequest, OpenRequest
from mixserve_client.wire.value import decode_value, encode_value

_FORMAT = 1
_NOBODY = ""
_TOUCHED_EVERY_S = 3600.0
_LEVELS = 4  # what a record has around values that came over the wire
_STATE = "state/"

Record = dict[str, Any]


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
    ):
        """`node` is the mixture's: the session takes a copy of it."""
        self.name = name
        self.dropped = False
        self.is_new = True  # until somebody holds it
        self.is_converted = False  # from another mixture's order, and not yet written down
        self.renewed = renewed
        self._journal = journal
        self._checkpoints = checkpoints
        self._node = node.clone()
        self._touched = -_TOUCHED_EVERY_S
        self._written: dict[str, bytes] = {}
        self._record: Record = {
            "format": _FORMAT,
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
        *,
        strict: bool,
    ) -> "Session":
        """The session that a journal tells of.

        Raises FileNotFoundError where there is none, CorruptCheckpoint for a damaged one, and FingerprintMismatch where
        the mixture is another by now; that only if `strict`.
        """
        record, state = read_record(journal)
        current = node.mixture.fingerprint
        if record["session"] != name:
            raise InvalidRequest(
                f"the name {name!r} differs from that of the session {record['session']!r} by case alone"
            )
        if strict and record["fingerprint"] != current:
            raise FingerprintMismatch(
                f"the session {name!r} was begun in a mixture with the fingerprint {record['fingerprint']}, this one "
                f"has {current}: its records are others. Open it with fresh=True to begin anew, or strict=False "
                "to go on in this mixture from the same index"
            )
        session = Session(name, node, journal, checkpoints, renewed)
        take_over_state(session._node, state, strict=strict)
        session.is_new, session.is_converted = False, record["fingerprint"] != current
        session._written = _hashes(_parts(record, state))
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
        asked = hashlib.sha256(encode_value([request.operation, request.arguments], more_levels=_LEVELS)).hexdigest()
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
            refusal, last["refusal"] = error, [type(error).__name__, str(error)]
        reply = self._reply(value)
        if operation.again is None:
            last["value"] = reply.value
        self._write({"sequence": request.sequence, "last": last})
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
        self._node.set_place(last["place"])
        try:
            value = self._run(operation.again, request)
        finally:
            self._node.set_place(stands)
        return self._reply(value)

    def _run(self, run: Run, request: CallRequest) -> Any:
        with faults(f"{request.operation} of the session {self.name!r}"):
            return run(Subject(self.name, self._node, self._checkpoints), request.arguments)

    def _reply(self, value: Any) -> CallReply:
        ended = isinstance(value, Ended)
        return CallReply(None if ended else value, ended, self.index, self.epoch)

    def _write(self, changes: Record) -> None:
        """Change the record, and write down what is new in it and in the node's state. Raises StorageFailed."""
        record = self._record | changes
        if self._journal is not None:
            parts = _parts(record, self._node.get_state())
            hashes = _hashes(parts)
            with storing(f"the journal of the session {self.name!r}"):
                try:
                    if not self._written or self._journal.is_long:
                        self._journal.begin(encode_value(parts, more_levels=_LEVELS))
                    else:
                        new = {path: part for path, part in parts.items() if self._written.get(path) != hashes[path]}
                        self._journal.append(encode_value(new, more_levels=_LEVELS))
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


def read_record(journal: Journal) -> tuple[Record, State]:
    """What a journal tells of its session. Raises FileNotFoundError, OSError and CorruptCheckpoint."""
    parts: Record = {}
    for entry in journal.read():
        try:
            parts |= decode_value(entry)
        except (ValueError, TypeError) as error:
            raise CorruptCheckpoint(f"the journal {journal.path} holds what is no entry: {error}") from error
    if parts.get("format") != _FORMAT:
        raise CorruptCheckpoint(
            f"the journal {journal.path} has the format {parts.get('format')}, this server reads {_FORMAT}; open the "
            "session with fresh=True, or use the mixserve that wrote it"
        )
    state = {path.removeprefix(_STATE): part for path, part in parts.items() if path.startswith(_STATE)}
    return {path: part for path, part in parts.items() if not path.startswith(_STATE)}, state


def _parts(record: Record, state: State) -> Record:
    """What is written down on its own when it has changed."""
    return record | {_STATE + entry: value for entry, value in state.items()}


def _hashes(parts: Record) -> dict[str, bytes]:
    return {
        path: hashlib.blake2b(encode_value(part, more_levels=_LEVELS), digest_size=16).digest()
        for path, part in parts.items()
    }
