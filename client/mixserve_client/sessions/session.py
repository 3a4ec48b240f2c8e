"""Sessions: the stateful calls of a node on a server, under a name."""

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
from mixserve_client.rpc.deadlines import deadline_in
from mixserve_client.rpc.one_thread import try_acquire
from mixserve_client.rpc.resources import Resources
from mixserve_client.schema.fields import Batch, Field
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.positions import check_positions
from mixserve_client.schema.sessions import CallReply, CallRequest, HeldSession, OpenedSession, check_name
from mixserve_client.sessions.leases import LeaseKeeper
from mixserve_client.sessions.values import check_record, check_records, check_rows
from mixserve_client.transport.waits import wait_s
from mixserve_client.wire import methods
from mixserve_client.wire.session import decode_call_reply, encode_call_request

State = dict[str, Any]
_MAY_END = ("next_record", "next_batch")
Check = Callable[[Any], object]  # takes the value of an answer; raises CorruptReply


def _accept(value: Any) -> None:
    """Accepts every value: the check of calls that return none."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The description of a checkpoint on the server."""

    name: str
    saved_at: float = 0.0  # seconds since 1970
    index: int = 0
    epoch: int = 0
    fingerprint: str = ""  # of the mixture
    bytes: int = 0
    version: str = ""  # of mixserve
    damaged: str = ""  # what is wrong with this description; the data are checked when a session restores them


class SessionView:
    """The calls that any client may make, also while another one holds the session; made by `MixClient.view_session`.

    Every call raises UnknownSession if there is no such session, and what every call of a client may raise.
    """

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
        """The name of the session's mixture."""
        return self._mixture

    def get_state(self) -> State:
        """The node's state: dicts of arrays, numbers and strings. Sessions of the same mixture accept it."""
        return _check_kind(self._ask("get_state").value, dict, "state")

    def get_statistics(self) -> dict[str, Any] | None:
        """The precomputed statistics if configured, else those computed or set last, else None."""
        return _check_statistics(self._ask("get_statistics").value)

    def get_operation_stats(self) -> dict[str, int]:
        """How many calls of `process` returned rows (`applied_count`), and how many were refused (`skipped_count`)."""
        counts = _check_kind(self._ask("get_operation_stats").value, dict, "counts")
        known = {"applied_count": None, "skipped_count": None} | counts
        return {str(name): _check_kind(count, int, f"count {name!s:.100}") for name, count in known.items()}

    def save_checkpoint(self, name: str, *, keep_last: int | None = None) -> Checkpoint:
        """Save the session's state on the server as checkpoint `name`, replacing one of that name.

        When this returns, the checkpoint is complete and on the disk. The server then deletes all but the newest
        `keep_last` checkpoints of the session; None keeps all. Raises StorageFailed if the server cannot write it; then
        nothing has changed.
        """
        name = check_name("checkpoint", name)
        return _decode_checkpoint(self._move("save_checkpoint", _check_of(name), name=name, keep_last=keep_last).value)

    def list_checkpoints(self) -> tuple[Checkpoint, ...]:
        """The session's checkpoints, oldest first."""
        return tuple(
            map(_decode_checkpoint, _check_kind(self._ask("list_checkpoints").value, list, "list of checkpoints"))
        )

    def delete_checkpoint(self, name: str) -> Checkpoint:
        """Delete a checkpoint, and return its description. Raises UnknownCheckpoint and StorageFailed."""
        name = check_name("checkpoint", name)
        return _decode_checkpoint(self._move("delete_checkpoint", _check_of(name), name=name).value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r}, mixture={self._mixture!r})"

    def _ask(self, operation: str, /, **arguments: Any) -> CallReply:
        """Make a call that changes nothing in the session, so that the server may run it twice."""
        request = CallRequest(self._mixture, self._name, operation, arguments, self._lease)
        return self._send(encode_call_request(request), deadline_in(self._timeout_s))

    # A view has no numbers to give: `Session` overrides this with calls that the server runs once.
    def _move(self, operation: str, check: Check = _accept, /, **arguments: Any) -> CallReply:
        reply = self._ask(operation, **arguments)
        check(reply.value)
        return reply

    def _send(self, request: bytes, deadline: float | None) -> CallReply:
        return decode_call_reply(self._resources.here.session_caller.call(methods.CALL_SESSION, request, deadline))


class Session(SessionView):
    """A private copy of a mixture's node on a server, which this object alone moves; made by `MixClient.session`.

    The server runs every call once, however often the client has to send it: if an answer is lost, the client asks
    again and gets the same answer, also from a restarted server. After DeadlineExceeded or Unavailable make the same
    call again to get its answer. Calls from several threads take turns. As a context manager it closes at the end.

    Every call raises SessionTaken if another client has taken the session over, UnknownSession if the server no longer
    has it, StorageFailed if the server cannot write its journal, and what every call of a client may raise.
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
        """`fields` are the mixture's fields; records and rows in answers are checked against them."""
        super().__init__(resources, held.mixture, held.name, timeout_s, held.lease)
        self._fields = fields
        self._leases = leases
        self._held = held
        self._index, self._epoch = opened.index, opened.epoch
        self._resumed = opened.resumed
        self._sequence = opened.sequence
        self._unanswered: bytes | None = None  # the last call, encoded, if we do not have its answer
        # Reentrant: a signal handler may save a state while the thread that it interrupts is in a call.
        self._lock = threading.RLock()
        self._moving = False
        self._closed = False
        self._pid = os.getpid()
        self._leases.add(held, opened.ttl_s)
        # `remove`, not `release`: a session that is dropped without `close` ends when its lease expires.
        weakref.finalize(self, self._leases.remove, held).atexit = False

    @property
    def resumed(self) -> bool:
        """Whether the session existed when this client opened it, and so continues from where it was."""
        return self._resumed

    @property
    def index(self) -> int:
        """The number of records read in this epoch."""
        return self._index

    @property
    def epoch(self) -> int:
        """The number of epochs started."""
        return self._epoch

    def __iter__(self) -> Self:
        """Start an epoch, as the node does: `epoch` + 1, `index` 0. `next` and `next_batch` continue within it."""
        self._move("start_epoch")
        return self

    def __next__(self) -> Any:
        """The record at `index`, in a separate request: `next_batch` is faster. Raises StopIteration at the end."""
        return self._read("next_record", partial(check_record, fields=self._fields))

    def next_batch(self, size: int) -> Batch:
        """The records from `index` on as arrays of shape (size, *field.shape), fewer at the epoch's end.

        A call returns up to 65,536 records and 256 MiB. Raises StopIteration if none is left.
        """
        _, size = check_positions(0, size)
        return self._read("next_batch", partial(check_records, fields=self._fields, most=size), size=size)

    def reset(self) -> None:
        """Set `index` and `epoch` to 0, and reset the sources that have a `reset`."""
        self._move("reset")

    def set_state(self, state: State) -> None:
        """Set the state to one that `get_state` returned, of this session or another.

        Raises InvalidRequest, naming the path within `state`, if it does not fit this mixture's node; then nothing has
        changed.
        """
        self._move("set_state", state=state)

    def compute_statistics(self, start: int, size: int, key: Any) -> dict[str, Any] | None:
        """The result of the mixture's `batch_stats_fn` for the batch at these positions; None if it has none."""
        start, size = check_positions(start, size)
        return self._move("compute_statistics", _check_statistics, start=start, size=size, key=key_words(key)).value

    def set_statistics(self, stats: dict[str, Any]) -> None:
        """Replace the computed statistics by `stats`, a dict of arrays, numbers and strings."""
        self._move("set_statistics", statistics=stats)

    def reset_statistics(self) -> None:
        """Forget computed statistics, and hide precomputed ones until some are computed or set."""
        self._move("reset_statistics")

    def reset_operation_stats(self) -> None:
        """Set both counts to zero."""
        self._move("reset_operation_stats")

    def reset_cache(self) -> None:
        """Evict all batches that the node has cached. All sessions of a mixture share this cache."""
        self._move("reset_cache")

    def process(self, start: int, size: int, key: Any = None) -> Batch:
        """The batch at these positions, as `MixClient.get_batch_at` returns it, counted in `get_operation_stats`.

        A call with wrong arguments counts as skipped. A call returns up to 65,536 rows and 256 MiB.
        """
        try:
            start, size = check_positions(start, size)
            words = key_words(key)
        except (InvalidRequest, OutOfRange):
            with suppress(InvalidRequest):
                self._move("process", start=0, size=0, key=None)  # the server refuses it, and so counts it as skipped
            raise
        check = partial(check_rows, fields=self._fields, size=size)
        return self._move("process", check, start=start, size=size, key=words).value

    def restore_checkpoint(self, name: str, *, session: str | None = None, strict: bool = True) -> None:
        """Resume from a checkpoint of this session, or of another `session` of the same mixture.

        Raises FingerprintMismatch if the mixture has changed since, unless `strict` is False: then the session resumes
        from the same index, in the order of this mixture. Also raises UnknownCheckpoint, CorruptCheckpoint and
        InvalidRequest. After an error nothing has changed.
        """
        source = self._name if session is None else check_name("session", session)
        self._move("restore_checkpoint", name=check_name("checkpoint", name), session=source, strict=strict)

    def close(self) -> None:
        """Release the session, so that other clients can open it; its journal and checkpoints stay. May be repeated."""
        if os.getpid() != self._pid:  # the session is the parent's
            return
        try:
            with self._turn() as deadline:
                if not self._closed:
                    self._closed = True
                    self._leases.release(self._held, deadline=deadline)
        except DeadlineExceeded:  # calls of other threads took until the deadline
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

    def _move(self, operation: str, check: Check = _accept, /, **arguments: Any) -> CallReply:
        """Make a numbered call. If the last call has no answer yet, or one that `check` refused, the same call again
        keeps its number."""
        self._check_process()
        with self._turn() as deadline:
            self._check_open()
            if self._moving:
                # The lock is reentrant, so this is a signal handler within a call: two numbers would be in use at once.
                raise InvalidRequest(
                    f"{operation} moves the session, and interrupts another call that does: in a signal handler take "
                    "its state, or close it"
                )
            return self._run_move(operation, arguments, deadline, check)

    def _run_move(self, operation: str, arguments: dict[str, Any], deadline: float | None, check: Check) -> CallReply:
        self._moving = True
        try:
            request = CallRequest(self._mixture, self._name, operation, arguments, self._lease, self._sequence)
            data = encode_call_request(request)
            # Equal bytes under the last number are the same call: the server answers it again, and does not run it.
            if data != self._unanswered:
                self._sequence += 1
                data = encode_call_request(replace(request, sequence=self._sequence))
            self._unanswered = data
            try:
                reply = self._send(data, deadline)
            except (InvalidRequest, OutOfRange, ServerFault):
                # The server counts these errors of `process`, so they are its answer, and the next call needs a new
                # number. Any other error may mean that an earlier attempt ran: the same call must keep its number. A
                # call that the server refused has not used its number.
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
        """Wait for this thread's turn, and yield the deadline of its call. Raises DeadlineExceeded if other threads'
        calls take until then."""
        deadline = deadline_in(self._timeout_s)
        with try_acquire(self._lock, -1 if deadline is None else wait_s(deadline)) as is_mine:
            if not is_mine:
                raise DeadlineExceeded("timeout_s ran out while other threads' calls used the session; allow more time")
            yield deadline

    def __reduce__(self) -> Any:
        raise TypeError(
            "a session cannot be pickled, since it belongs to one process: let the other process open it, with "
            "take_over=True, or open a session of its own that restores a checkpoint"
        )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise InvalidRequest(
                "this session belongs to the process that opened it, and this process was forked: open another one here"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this session is closed: open it again with client.session(...)")


def is_definite(error: BaseException) -> bool:
    """Whether the error is the server's answer, so that the call has certainly not opened a session."""
    return isinstance(error, MixserveError) and not isinstance(error, DeadlineExceeded | Unavailable | CorruptReply)


def _decode_checkpoint(value: Any) -> Checkpoint:
    """The checkpoint that `value` describes. Raises CorruptReply."""
    entries = _check_kind(value, dict, "description of a checkpoint")
    _check_kind(entries.get("name"), str, "name of a checkpoint")
    # The types come from the defaults. A newer server may send more entries, and an older one fewer.
    known: dict[str, type] = {"name": str}
    known |= {field.name: cast(type, type(field.default)) for field in fields(Checkpoint) if field.name not in known}
    return Checkpoint(**{name: _check_kind(entries[name], known[name], name) for name in known if name in entries})


def _check_of(name: str) -> Check:
    """A check that a value describes the checkpoint `name`."""

    def check(value: Any) -> None:
        if (got := _decode_checkpoint(value).name) != name:
            raise CorruptReply(f"the server answered about the checkpoint {got!r:.100}, not about {name!r}")

    return check


def _check_statistics(value: Any) -> dict[str, Any] | None:
    """`value` if it is statistics or None. Raises CorruptReply."""
    return None if value is None else _check_kind(value, dict, "statistics")


def _check_kind(value: Any, kind: type, what: str) -> Any:
    """`value` if it is of type `kind`; an int also counts as a float, and a bool as neither. Raises CorruptReply."""
    is_right = isinstance(value, (int, float) if kind is float else kind) and (kind is bool) == isinstance(value, bool)
    if not is_right:
        raise CorruptReply(f"the server's {what} must be a {kind.__name__}, got {value!r:.200}")
    return value
