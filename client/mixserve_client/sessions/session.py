"""A session: the stateful surface of a node that lives on a server, under a name."""

import os
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from types import TracebackType
from typing import Any, Self, cast

from mixserve_client.errors import (
    CorruptReply,
    DeadlineExceeded,
    InvalidRequest,
    MixserveError,
    OutOfRange,
    ServerFault,
    Unavailable,
)
from mixserve_client.rpc.deadlines import deadline_in, wait_s
from mixserve_client.rpc.one_thread import try_acquire
from mixserve_client.rpc.resources import Resources
from mixserve_client.schema.fields import Field
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.positions import check_positions
from mixserve_client.schema.sessions import CallReply, CallRequest, HeldSession, OpenedSession, check_name
from mixserve_client.sessions.leases import LeaseKeeper
from mixserve_client.sessions.values import check_record, check_records, check_rows
from mixserve_client.wire import methods
from mixserve_client.wire.session import decode_call_reply, encode_call_request

State = dict[str, Any]
_MAY_END = ("next_record", "next_batch")
Check = Callable[[Any], object]  # of the value of an answer; raises CorruptReply


def _is_any(value: Any) -> None:
    """The check of what promises nothing."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on the server: when it was saved, in seconds since 1970, of what, by which version of mixserve.

    `damaged` says what is wrong with its description; its data are looked at when it is restored.
    """

    name: str
    saved_at: float = 0.0
    index: int = 0
    epoch: int = 0
    fingerprint: str = ""
    bytes: int = 0
    version: str = ""
    damaged: str = ""


class SessionView:
    """What anybody may ask of a session, whoever holds it; made by `MixClient.view_session`."""

    def __init__(self, resources: Resources, mixture: str, name: str, timeout_s: float | None, lease: str = ""):
        self._resources = resources
        self._mixture = mixture
        self._name = check_name("session", name)
        self._timeout_s = timeout_s
        self._lease = lease

    @property
    def name(self) -> str:
        """The session's name."""
        return self._name

    @property
    def mixture(self) -> str:
        """The name of its mixture."""
        return self._mixture

    def get_state(self) -> State:
        """The node's state: dicts of arrays, numbers and strings, for `set_state` of a session of the same mixture."""
        return _check_kind(self._ask("get_state").value, dict, "state")

    def get_statistics(self) -> dict[str, Any] | None:
        """The precomputed statistics where configured, else those computed or set last, else None."""
        return _check_statistics(self._ask("get_statistics").value)

    def get_operation_stats(self) -> dict[str, int]:
        """How many calls of `process` gave a result (`applied_count`), and how many were refused (`skipped_count`)."""
        counts = _check_kind(self._ask("get_operation_stats").value, dict, "counts")
        known = {"applied_count": None, "skipped_count": None} | counts
        return {str(name): _check_kind(count, int, f"count {name!s:.100}") for name, count in known.items()}

    def save_checkpoint(self, name: str, *, keep_last: int | None = None) -> Checkpoint:
        """Keep the session's state on the server under `name`, in the place of what was kept there.

        It is whole and on the disk when this returns. Of the session's checkpoints the newest `keep_last` stay, all
        where it is None. Raises StorageFailed where the server cannot keep it; then nothing has changed.
        """
        name = check_name("checkpoint", name)
        return _decode_checkpoint(self._move("save_checkpoint", _check_of(name), name=name, keep_last=keep_last).value)

    def list_checkpoints(self) -> tuple[Checkpoint, ...]:
        """The session's checkpoints, in the order in which they were saved."""
        return tuple(
            map(_decode_checkpoint, _check_kind(self._ask("list_checkpoints").value, list, "list of checkpoints"))
        )

    def delete_checkpoint(self, name: str) -> Checkpoint:
        """Delete a checkpoint, and say what it was. Raises UnknownCheckpoint and StorageFailed."""
        name = check_name("checkpoint", name)
        return _decode_checkpoint(self._move("delete_checkpoint", _check_of(name), name=name).value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, mixture={self._mixture!r})"

    def _ask(self, operation: str, /, **arguments: Any) -> CallReply:
        """Do what moves nothing, and may be done twice."""
        request = CallRequest(self._mixture, self._name, operation, arguments, self._lease)
        return self._send(encode_call_request(request), deadline_in(self._timeout_s))

    def _move(self, operation: str, check: Check = _is_any, /, **arguments: Any) -> CallReply:
        reply = self._ask(operation, **arguments)
        check(reply.value)
        return reply

    def _send(self, request: bytes, deadline: float | None) -> CallReply:
        return decode_call_reply(self._resources.here.caller.call(methods.CALL_SESSION, request, deadline))


class Session(SessionView):
    """A private copy of a mixture's node, which this object alone moves; made by `MixClient.session`.

    Every call is done once, however often it must be sent: one whose answer was lost gets the same answer again, from a
    restarted server too. After a DeadlineExceeded or Unavailable make the same call again to get its answer. Calls from
    several threads take turns. A context manager that lets go of the session.

    Every call raises SessionTaken where another client has taken it over, UnknownSession where the server has forgotten
    it, StorageFailed where its journal cannot be written, and what every call of a client may raise.
    """

    def __init__(
        self,
        resources: Resources,
        leases: LeaseKeeper,
        held: HeldSession,
        opened: OpenedSession,
        timeout_s: float | None,
        fields: tuple[Field, ...],
    ):
        """`fields` are those of the mixture's records, which answers are held to."""
        super().__init__(resources, held.mixture, held.name, timeout_s, held.lease)
        self._fields = fields
        self._leases = leases
        self._held = held
        self._index, self._epoch = opened.index, opened.epoch
        self._resumed = opened.resumed
        self._sequence = opened.sequence
        self._unanswered: bytes | None = None
        # A signal handler takes a state while the thread that it interrupts is in a call.
        self._lock = threading.RLock()
        self._moving = False
        self._closed = False
        self._pid = os.getpid()
        self._leases.add(held, opened.ttl_s)
        weakref.finalize(
            self, self._leases.remove, held
        ).atexit = False  # one that nobody has any more ends with its lease

    @property
    def resumed(self) -> bool:
        """Whether the session was known when it was opened, so that it goes on where it stood."""
        return self._resumed

    @property
    def index(self) -> int:
        """How many records of the epoch have been read."""
        return self._index

    @property
    def epoch(self) -> int:
        """How many epochs have been started."""
        return self._epoch

    def __iter__(self) -> Self:
        """Start an epoch, as the node does: `epoch` + 1, `index` 0. `next` and `next_batch` go on within one."""
        self._move("start_epoch")
        return self

    def __next__(self) -> Any:
        """The record at `index`, by a request of its own: `next_batch` is quicker. Raises StopIteration at the end."""
        return self._read("next_record", partial(check_record, fields=self._fields))

    def next_batch(self, size: int) -> Any:
        """The records from `index` on as arrays of shape (size, *field.shape), fewer at the epoch's end.

        One call gives up to 65,536 records and 256 MiB. Raises StopIteration where there is none left.
        """
        _, size = check_positions(0, size)
        return self._read("next_batch", partial(check_records, fields=self._fields, most=size), size=size)

    def reset(self) -> None:
        """Set `index` and `epoch` to 0, and reset the sources that can be."""
        self._move("reset")

    def set_state(self, state: State) -> None:
        """Take over a state that `get_state` gave, of this session or another.

        Raises InvalidRequest, naming the path, for what is no state of this mixture's node; then nothing has changed.
        """
        self._move("set_state", state=state)

    def compute_statistics(self, start: int, size: int, key: Any) -> dict[str, Any] | None:
        """What the mixture's `batch_stats_fn` says of the batch at these positions; None where none is configured."""
        start, size = check_positions(start, size)
        return self._move("compute_statistics", _check_statistics, start=start, size=size, key=key_words(key)).value

    def set_statistics(self, stats: dict[str, Any]) -> None:
        """Keep `stats`, a dict of arrays, numbers and strings, in the place of computed ones."""
        self._move("set_statistics", statistics=stats)

    def reset_statistics(self) -> None:
        """Forget computed statistics, and leave precomputed ones unmentioned."""
        self._move("reset_statistics")

    def reset_operation_stats(self) -> None:
        """Set both counts to zero."""
        self._move("reset_operation_stats")

    def reset_cache(self) -> None:
        """Forget the batches that the node keeps. All sessions of a mixture share them."""
        self._move("reset_cache")

    def process(self, start: int, size: int, key: Any = None) -> Any:
        """The batch at these positions, as `MixClient.get_batch_at` gives it, counted in `get_operation_stats`; what is
        refused is counted as skipped. One call gives up to 65,536 rows and 256 MiB."""
        try:
            start, size = check_positions(start, size)
            words = key_words(key)
        except (InvalidRequest, OutOfRange):
            with suppress(InvalidRequest):
                self._move("process", start=0, size=0, key=None)  # which is refused, and counted
            raise
        check = partial(check_rows, fields=self._fields, size=size)
        return self._move("process", check, start=start, size=size, key=words).value

    def restore_checkpoint(self, name: str, *, session: str | None = None, strict: bool = True) -> None:
        """Go on where a checkpoint was saved, of this session or of another one of the same mixture.

        A checkpoint of a mixture with another fingerprint is refused, unless `strict` is False: then the session goes
        on from the same index, in the order of this mixture. Raises UnknownCheckpoint, CorruptCheckpoint,
        FingerprintMismatch and InvalidRequest; then nothing has changed.
        """
        source = self._name if session is None else check_name("session", session)
        self._move("restore_checkpoint", name=check_name("checkpoint", name), session=source, strict=strict)

    def close(self) -> None:
        """Let others open the session; its journal and its checkpoints stay. Closing twice is closing once."""
        if os.getpid() != self._pid:
            return
        try:
            with self._turn() as deadline:
                if not self._closed:
                    self._closed = True
                    self._leases.release(self._held, deadline=deadline)
        except DeadlineExceeded:  # calls of other threads took all the time
            self._closed = True
            self._leases.abandon(self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, operation: str, check: Check, /, **arguments: Any) -> Any:
        reply = self._move(operation, check, **arguments)
        if reply.ended:
            raise StopIteration
        return reply.value

    def _move(self, operation: str, check: Check = _is_any, /, **arguments: Any) -> CallReply:
        """Do one numbered thing. What has not been answered yet keeps its number when it is asked for again: so does
        what was answered with a value that `check` refuses."""
        self._check_process()
        with self._turn() as deadline:
            self._check_open()
            if self._moving:
                raise InvalidRequest(
                    f"{operation} moves the session, and interrupts a call that does: in a signal handler take its "
                    "state, or close it"
                )
            return self._run_move(operation, arguments, deadline, check)

    def _run_move(self, operation: str, arguments: dict[str, Any], deadline: float | None, check: Check) -> CallReply:
        self._moving = True
        try:
            request = CallRequest(self._mixture, self._name, operation, arguments, self._lease, self._sequence)
            data = encode_call_request(request)
            if data != self._unanswered:
                self._sequence += 1
                data = encode_call_request(replace(request, sequence=self._sequence))
            self._unanswered = data
            try:
                reply = self._send(data, deadline)
            except (InvalidRequest, OutOfRange, ServerFault):
                # Where these are counted they are answers. All else may hide that the call was done when it was sent
                # before, so the same call is made under the same number; one that was refused has used up none.
                if operation == "process":
                    self._unanswered = None
                raise
            if not (reply.ended and operation in _MAY_END):
                check(reply.value)
            self._unanswered = None
            self._index, self._epoch = reply.index, reply.epoch
            return reply
        finally:
            self._moving = False

    def _ask(self, operation: str, /, **arguments: Any) -> CallReply:
        self._check_process()
        with self._turn() as deadline:
            self._check_open()
            request = CallRequest(self._mixture, self._name, operation, arguments, self._lease)
            return self._send(encode_call_request(request), deadline)

    @contextmanager
    def _turn(self) -> Generator[float | None]:
        """This thread's turn, and the deadline of its call. Raises DeadlineExceeded where other threads' calls take
        until then."""
        deadline = deadline_in(self._timeout_s)
        with try_acquire(self._lock, -1 if deadline is None else wait_s(deadline)) as is_mine:
            if not is_mine:
                raise DeadlineExceeded(
                    "timeout_s ran out while calls of other threads had the session; allow more time"
                )
            yield deadline

    def __reduce__(self) -> Any:
        raise TypeError(
            "a session cannot be pickled: it is one process's. Let the other process open it, with take_over=True, or "
            "one of its own that restores a checkpoint"
        )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise InvalidRequest(
                "this session belongs to the process that opened it, and this one was forked off: open another one here"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this session is closed; open it again with client.session(...)")


def is_definite(error: BaseException) -> bool:
    """Whether the server has refused, rather than not been heard."""
    return isinstance(error, MixserveError) and not isinstance(error, DeadlineExceeded | Unavailable | CorruptReply)


def _decode_checkpoint(described: Any) -> Checkpoint:
    """Raises CorruptReply for what describes no checkpoint."""
    entries = _check_kind(described, dict, "description of a checkpoint")
    _check_kind(entries.get("name"), str, "name of a checkpoint")
    known: dict[str, type] = {"name": str}
    known |= {field.name: cast(type, type(field.default)) for field in fields(Checkpoint) if field.name not in known}
    return Checkpoint(**{name: _check_kind(entries[name], known[name], name) for name in known if name in entries})


def _check_of(name: str) -> Check:
    """The check of a description of the checkpoint of that name."""

    def check(described: Any) -> None:
        if (got := _decode_checkpoint(described).name) != name:
            raise CorruptReply(f"the server answered about the checkpoint {got!r:.100}, {name!r} was asked for")

    return check


def _check_statistics(value: Any) -> dict[str, Any] | None:
    """`value`, known to be statistics or None. Raises CorruptReply."""
    return None if value is None else _check_kind(value, dict, "statistics")


def _check_kind(value: Any, kind: type, what: str) -> Any:
    """`value`, known to be of that type; an int is a float too, and a bool neither. Raises CorruptReply."""
    is_right = isinstance(value, (int, float) if kind is float else kind) and (kind is bool) == isinstance(value, bool)
    if not is_right:
        raise CorruptReply(f"the server's {what} must be a {kind.__name__}, got {value!r:.200}")
    return value
