"""The operations on a session, by name. Each takes the session's node and arguments from the wire."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from mixserve.failed_read import read_note
from mixserve.module import kept_statistics
from mixserve.module.state import Frozen, State
from mixserve.node import MixDataSourcesNode
from mixserve.node.children import forget_last_read, last_read
from mixserve.node.record_stream import EpochEnded
from mixserve.sessions.checkpoints import Checkpoints
from mixserve_client.errors import FingerprintMismatch, InvalidRequest, StorageFailed
from mixserve_client.schema.checks import check_truth
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.positions import check_positions
from mixserve_client.schema.sessions import check_name
from mixserve_client.schema.text import show
from mixserve_client.schema.tree import unflatten
from mixserve_client.wire.value import value_message

Arguments = dict[str, Any]

_ROWS_LIMIT, _BYTES_LIMIT = 1 << 16, 256 << 20


class Subject(NamedTuple):
    """What an operation works on."""

    session: str
    node: MixDataSourcesNode
    checkpoints: Checkpoints | None
    # Called with the future bytes of statistics. Raises StorageFailed if there is no room.
    check_room: Callable[[int], None] = lambda _: None


class Ended(NamedTuple):
    """The epoch is over."""


Run = Callable[[Subject, Arguments], Any]


class Operation(NamedTuple):
    """An operation, and how its answer is repeated to a client that lost it. `run` returns a value for the wire."""

    run: Run
    moves: bool = True  # needs the session's holder
    again: Run | None = None  # makes the answer again; without it, the session keeps the answer until the next call
    large: bool = False  # its arguments may be as large as a state or statistics
    reads: bool = False  # `again` must start at the position where the session was before the call
    counts: bool = False  # changes the session even when it fails
    # Computes the answer in advance. For operations that destroy what their answer describes: the answer is in the
    # journal before `run`.
    foretold: Run | None = None


def rows_limit(node: MixDataSourcesNode) -> int:
    """The most rows in one answer."""
    return max(1, min(_ROWS_LIMIT, _BYTES_LIMIT // max(1, row_bytes(node))))


def row_bytes(node: MixDataSourcesNode) -> int:
    """The bytes of a row over all fields."""
    return sum(field.nbytes for field in node.mixture.fields)


def reply_rows(node: MixDataSourcesNode, operation: str, given: Arguments) -> int:
    """How many rows the answer of an operation has, or is computed from; 0 if that is not known, or not allowed."""
    if operation == "next_record":
        return 1
    size = given.get("size") if operation in _OF_ROWS else None
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= rows_limit(node) else 0


def sendable(value: Any) -> Any:
    """`value` itself. Raises InvalidRequest if it cannot be encoded."""
    try:
        value_message(value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"cannot send the mixture's statistics: {error}") from error
    return value


def freeze(values: Mapping[Any, Any]) -> Frozen:
    """A private, read-only copy of statistics. Raises InvalidRequest if they cannot be encoded."""
    # Without a copy, the user's function could go on changing the dict that it returned. And frozen values know their
    # digest, so that a call need not encode megabytes to find out whether they have changed.
    if isinstance(values, Frozen):
        return values
    try:
        return Frozen(values)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"a session cannot keep these statistics: {error}") from error


def freeze_state(state: Any) -> Any:
    """A node's state, with its own and its children's statistics frozen. Raises InvalidRequest."""
    if not isinstance(state, dict):
        return state
    frozen, statistics, sources = cast(State, dict(state)), state.get("statistics"), state.get("sources")
    if isinstance(statistics, dict) and isinstance(statistics.get("values"), dict):
        frozen["statistics"] = statistics | {"values": freeze(statistics["values"])}
    if isinstance(sources, dict):
        frozen["sources"] = {name: freeze_state(child) for name, child in sources.items()}
    return frozen


def frozen_bytes(value: Any) -> int:
    """The bytes of the frozen statistics in a state."""
    if isinstance(value, Frozen):
        return value.bytes
    return sum(map(frozen_bytes, value.values())) if isinstance(value, dict) else 0


def take_over_state(node: MixDataSourcesNode, state: State, *, strict: bool) -> None:
    """Set the node's state. If not `strict`, a state of another mixture resumes at the same index in this one.

    Raises InvalidRequest if it is not a state of this node.
    """
    try:
        if not strict and isinstance(state, dict) and state.get("order") != node.mixture.order:
            stood = node.get_place()
            try:
                state = (
                    state
                    | _place_at(node, int(state["index"]))
                    | {"epoch": state["epoch"], "order": node.mixture.order}
                )
            finally:
                node.set_place(stood)
        node.set_state(state)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(f"this is not a state of this mixture's node: {error}") from error


def _place_at(node: MixDataSourcesNode, index: int) -> State:
    """The node's place at `index`, or at the end of the epoch if that comes earlier. Moves the node there."""
    # Reads all records up to `index`: Grain's iterators have no other way to a position in an order that is new.
    node.index.set_value(min(index, len(node)))
    try:
        return node.get_place()
    except EpochEnded as ended:
        node.index.set_value(ended.end)
        return node.get_place()


def _start_epoch(on: Subject, _: Arguments) -> None:
    iter(on.node)


def _next_record(on: Subject, _: Arguments) -> Any:
    before = int(on.node.index.get_value())
    forget_last_read()
    try:
        record = next(on.node)
    except StopIteration:
        return Ended()

    try:
        on.node.mixture.check_record(record, before, last_read())
    except BaseException:  # without a journal the session is not read again, so it must not have moved
        on.node.index.set_value(before)
        raise
    return record


def _next_batch(on: Subject, given: Arguments) -> Any:
    _, size = check_positions(0, _argument(given, "size"), rows_limit(on.node))
    try:
        return on.node.next_batch(size)
    except StopIteration:
        return Ended()


def _reset(on: Subject, _: Arguments) -> None:
    on.node.reset()


def _get_state(on: Subject, _: Arguments) -> Any:
    return on.node.get_state()


def _set_state(on: Subject, given: Arguments) -> None:
    _take_over(on, _argument(given, "state"), strict=True)


def _take_over(on: Subject, state: Any, *, strict: bool) -> None:
    frozen = freeze_state(state)
    on.check_room(frozen_bytes(frozen))
    take_over_state(on.node, frozen, strict=strict)


def _compute_statistics(on: Subject, given: Arguments) -> Any:
    start, size = check_positions(_argument(given, "start"), _argument(given, "size"), rows_limit(on.node))
    words = key_words(given.get("key"))
    if on.node.config.batch_stats_fn is None:
        return None
    try:
        batch = on.node.get_batch_at(start, size, jnp.asarray(words))
    except ValueError as error:
        if read_note(error) is not None:  # a source's error, not one of the request
            raise
        raise InvalidRequest(f"cannot compute statistics of this batch: {error}") from error
    # On a clone, because compute_statistics sets the node's statistics, and there may be no room for them.
    statistics = on.node.clone().compute_statistics(batch)
    return None if statistics is None else _keep_statistics(on, statistics)


def _keep_statistics(on: Subject, statistics: dict[str, Any]) -> Frozen:
    # Checked before they are set: the session must not keep what it cannot send, or has no room for.
    frozen = freeze(statistics)
    on.check_room(frozen.bytes + sum(map(frozen_bytes, kept_statistics(on.node)[1:])))
    on.node.set_statistics(frozen)
    return frozen


def _get_statistics(on: Subject, _: Arguments) -> Any:
    return sendable(on.node.get_statistics())


def _set_statistics(on: Subject, given: Arguments) -> None:
    statistics = _argument(given, "statistics")
    if not isinstance(statistics, dict):
        raise InvalidRequest(f"statistics must be a dict, got {type(statistics).__name__}")
    _keep_statistics(on, statistics)


def _reset_statistics(on: Subject, _: Arguments) -> None:
    on.node.reset_statistics()


def _get_operation_stats(on: Subject, _: Arguments) -> Any:
    return on.node.get_operation_stats()


def _reset_operation_stats(on: Subject, _: Arguments) -> None:
    on.node.reset_operation_stats()


def _reset_cache(on: Subject, _: Arguments) -> None:
    on.node.reset_cache()


def _process(on: Subject, given: Arguments) -> Any:
    return on.node.counted(lambda: _rows(on, given))


def _rows(on: Subject, given: Arguments) -> Any:
    start, size = check_positions(given.get("start"), given.get("size"), rows_limit(on.node))
    words = key_words(given.get("key"))
    buffers = {field.name: np.empty((size, *field.shape), field.dtype) for field in on.node.mixture.fields}
    on.node.read_into(start, words, buffers)
    return unflatten(buffers)


def _save_checkpoint(on: Subject, given: Arguments) -> Any:
    keep_last = given.get("keep_last")
    if keep_last is not None and (isinstance(keep_last, bool) or not isinstance(keep_last, int) or keep_last < 1):
        raise InvalidRequest(f"keep_last must be an integer of at least 1, or None to keep all; got {keep_last!r:.100}")
    name = check_name("checkpoint", _argument(given, "name"))
    state, fingerprint = on.node.get_state(), on.node.mixture.fingerprint
    return _checkpoints(on).save(on.session, name, state, fingerprint, keep_last)


def _restore_checkpoint(on: Subject, given: Arguments) -> None:
    name = check_name("checkpoint", _argument(given, "name"))
    session = check_name("session", given.get("session", on.session))
    strict = check_truth("strict", given.get("strict", True))
    state, fingerprint = _checkpoints(on).load(session, name)
    if strict and fingerprint != on.node.mixture.fingerprint:
        raise FingerprintMismatch(
            f"the checkpoint {name!r} of the session {session!r} belongs to a mixture with the fingerprint "
            f"{fingerprint}, this one has {on.node.mixture.fingerprint}: its records differ. With strict=False the "
            "session resumes in this mixture at the same index"
        )
    _take_over(on, state, strict=strict)


def _list_checkpoints(on: Subject, _: Arguments) -> Any:
    return _checkpoints(on).describe_all(on.session)


def _delete_checkpoint(on: Subject, given: Arguments) -> Any:
    name = check_name("checkpoint", _argument(given, "name"))
    return _checkpoints(on).delete(on.session, name)


def _describe_checkpoint(on: Subject, given: Arguments) -> Any:
    return _checkpoints(on).describe(on.session, check_name("checkpoint", _argument(given, "name")))


def _checkpoints(on: Subject) -> Checkpoints:
    if on.checkpoints is None:
        raise StorageFailed(
            "this server has no folder for checkpoints: start it with --state-dir FOLDER (state_dir in its "
            "configuration, or of local_client), or save session.get_state() yourself"
        )
    return on.checkpoints


def _argument(given: Arguments, name: str) -> Any:
    if name not in given:
        got = ", ".join(map(show, given)) or "none"
        raise InvalidRequest(f"the argument {name} is required, got {got:.200}")
    return given[name]


OPERATIONS: dict[str, Operation] = {
    "start_epoch": Operation(_start_epoch),
    "next_record": Operation(_next_record, again=_next_record, reads=True),
    "next_batch": Operation(_next_batch, again=_next_batch, reads=True),
    "reset": Operation(_reset),
    "get_state": Operation(_get_state, moves=False),
    "set_state": Operation(_set_state, large=True),
    "compute_statistics": Operation(_compute_statistics),
    "get_statistics": Operation(_get_statistics, moves=False),
    "set_statistics": Operation(_set_statistics, large=True),
    "reset_statistics": Operation(_reset_statistics),
    "get_operation_stats": Operation(_get_operation_stats, moves=False),
    "reset_operation_stats": Operation(_reset_operation_stats),
    "reset_cache": Operation(_reset_cache),
    "process": Operation(_process, again=_rows, counts=True),
    "save_checkpoint": Operation(_save_checkpoint, moves=False),
    "restore_checkpoint": Operation(_restore_checkpoint),
    "list_checkpoints": Operation(_list_checkpoints, moves=False),
    "delete_checkpoint": Operation(_delete_checkpoint, moves=False, foretold=_describe_checkpoint),
}
# These need no session: checkpoints stay when a session and its journal are gone.
ABOUT_CHECKPOINTS = ("list_checkpoints", "delete_checkpoint")
# Calls that hang because a disk does, rather than a source.
ABOUT_DISKS = frozenset((*ABOUT_CHECKPOINTS, "save_checkpoint"))
_OF_ROWS = frozenset(("next_batch", "process", "compute_statistics"))
# Their answers have the statistics that the session keeps.
TELLS_STATISTICS = frozenset(("get_state", "get_statistics"))


def find_operation(name: str) -> Operation:
    """The operation called `name`. Raises InvalidRequest."""
    try:
        return OPERATIONS[name]
    except KeyError:
        raise InvalidRequest(f"operation must be one of {', '.join(OPERATIONS)}; got {name!r:.100}") from None
