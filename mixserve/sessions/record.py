"""A session's record <-> the entries of its journal: parts that are written down when they have changed."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from mixserve.module.state import Frozen, State
from mixserve.sessions.journal import Journal
from mixserve_client.errors import CorruptCheckpoint
from mixserve_client.schema.sessions import HOLDER_LIMIT, is_lease, is_name
from mixserve_client.wire.value import decode_value, encode_value

FORMAT = 1
LEVELS = 4  # what a record has around values that came over the wire
_STATE = "state/"
_LAST = 2**63 - 1

Record = dict[str, Any]


def parts_of(record: Record, state: State) -> Record:
    """What is written down on its own when it has changed."""
    return record | {_STATE + entry: value for entry, value in state.items()}


def hashes_of(parts: Record) -> dict[str, bytes]:
    """What tells whether a part has changed. Frozen values are not encoded again: they know theirs."""
    return {
        path: hashlib.blake2b(encode_value(_digested(part), more_levels=LEVELS), digest_size=16).digest()
        for path, part in parts.items()
    }


def read_record(journal: Journal) -> tuple[Record, State]:
    """What a journal tells of its session. Raises FileNotFoundError, OSError and CorruptCheckpoint."""
    parts: Record = {}
    for entry in journal.entries():
        try:
            changed: Any = decode_value(entry, more_levels=LEVELS)
            if not isinstance(changed, dict):
                raise ValueError(f"it must be a dict, and is a {type(changed).__name__}")
        except ValueError as error:
            raise CorruptCheckpoint(f"the journal {journal.path} holds what is no entry: {error}") from error
        parts |= cast(Record, changed)
    if parts.get("format") != FORMAT:
        raise CorruptCheckpoint(
            f"the journal {journal.path} has the format {parts.get('format')!r:.20}, this server reads {FORMAT}; open "
            "the session with fresh=True, or use the mixserve that wrote it"
        )
    state = {str(path).removeprefix(_STATE): part for path, part in parts.items() if str(path).startswith(_STATE)}
    record = {path: part for path, part in parts.items() if not str(path).startswith(_STATE)}
    _check(journal, _RECORD, record, "")
    _check(journal, _STOOD, state, _STATE)
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
    """Whether this is how the last call is answered again."""
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
_STOOD: dict[str, Callable[[Any], bool]] = {"index": _is_count, "epoch": _is_count}


def _digested(value: Any) -> Any:
    """`value` with digests in the place of what is frozen."""
    if isinstance(value, Frozen):
        return value.digest.hex()
    if isinstance(value, dict):
        return {key: _digested(child) for key, child in cast(dict[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        children = map(_digested, cast(list[Any], value))
        return tuple(children) if isinstance(value, tuple) else list(children)
    return value
