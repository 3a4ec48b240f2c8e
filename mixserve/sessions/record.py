"""A session's record <-> the entries of its journal. An entry has only the parts that have changed."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from mixserve.module.state import Frozen, State
from mixserve.sessions.journal import Journal
from mixserve_client.errors import CorruptCheckpoint
from mixserve_client.schema.sessions import HOLDER_LIMIT, is_lease, is_name
from mixserve_client.wire.value import decode_value, encode_value

FORMAT = 1
LEVELS = 4  # of nesting that a record adds around values from the wire, whose own depth is limited
_STATE = "state/"
_LAST = 2**63 - 1

Record = dict[str, Any]


def parts_of(record: Record, state: State) -> Record:
    """The parts of a session, by path; each is written to the journal when it has changed."""
    return record | {_STATE + entry: value for entry, value in state.items()}


def hashes_of(parts: Record) -> dict[str, bytes]:
    """A hash of each part, to tell whether it has changed."""
    # Frozen values are not encoded: with 15 MiB of statistics that made a call take 88 instead of 2.5 ms.
    return {
        path: hashlib.blake2b(encode_value(_with_digests(part), more_levels=LEVELS), digest_size=16).digest()
        for path, part in parts.items()
    }


def read_record(journal: Journal) -> tuple[Record, State]:
    """The record and the node's state in a journal. Raises FileNotFoundError, OSError and CorruptCheckpoint."""
    parts: Record = {}
    for entry in journal.entries():
        try:
            changed: Any = decode_value(entry, more_levels=LEVELS)
            if not isinstance(changed, dict):
                raise ValueError(f"it must be a dict, and is a {type(changed).__name__}")
        except ValueError as error:
            raise CorruptCheckpoint(
                f"the journal {journal.path} is damaged: an entry cannot be decoded: {error}. Open the session with "
                "fresh=True, and restore a checkpoint"
            ) from error
        parts |= cast(Record, changed)  # later entries have what changed since
    if parts.get("format") != FORMAT:
        raise CorruptCheckpoint(
            f"the journal {journal.path} has the format {parts.get('format')!r:.20}, this server reads {FORMAT}; open "
            "the session with fresh=True, or use the version of mixserve that wrote it"
        )
    state = {str(path).removeprefix(_STATE): part for path, part in parts.items() if str(path).startswith(_STATE)}
    record = {path: part for path, part in parts.items() if not str(path).startswith(_STATE)}
    _check(journal, _RECORD, record, "")
    _check(journal, _POSITION, state, _STATE)
    return record, state


def _check(journal: Journal, allowed: Mapping[str, Callable[[Any], bool]], parts: Record, where: str) -> None:
    """Raises CorruptCheckpoint, naming the entry."""
    for entry, is_right in allowed.items():
        if entry not in parts or not is_right(parts[entry]):
            got = f"{parts[entry]!r:.100}" if entry in parts else "nothing"
            raise CorruptCheckpoint(
                f"the journal {journal.path} is damaged: its entry {where}{entry} cannot be {got}. Open the session "
                "with fresh=True, and restore a checkpoint"
            )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= HOLDER_LIMIT and (value.isprintable() or not value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LAST


def _is_last(value: Any) -> bool:
    """Whether `value` is an entry `last`, from which the server repeats the last answer."""
    if not isinstance(value, dict):
        return False
    last = cast(Record, value)
    refusal: Any = last.get("refusal", ["", ""])
    return (
        isinstance(last.get("asked", ""), str)
        and isinstance(last.get("place", {}), dict)
        and isinstance(refusal, list)
        and [type(part) for part in cast(list[Any], refusal)] == [str, str]
    )


_RECORD: dict[str, Callable[[Any], bool]] = {
    "session": is_name,
    "fingerprint": _is_text,
    "lease": lambda value: value == "" or is_lease(value),
    "holder": _is_text,
    "resumed": lambda value: isinstance(value, bool),
    "sequence": _is_count,
    "last": _is_last,
}
_POSITION: dict[str, Callable[[Any], bool]] = {"index": _is_count, "epoch": _is_count}


def _with_digests(value: Any) -> Any:
    """`value`, with frozen values replaced by their digests."""
    if isinstance(value, Frozen):
        return value.digest.hex()
    if isinstance(value, dict):
        return {key: _with_digests(child) for key, child in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        children = map(_with_digests, cast(list[Any], value))
        return tuple(children) if isinstance(value, tuple) else list(children)
    return value
