"""A reader's weight schedule, and its id: a chain of hashes, so that appending an entry costs one hash."""

import hashlib
import struct
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

Weights = Sequence[float] | Mapping[str, float]
Pairs = Sequence[tuple[int, Weights]]

_MOST_WEIGHTS = 1 << 20


class ScheduleEntry(NamedTuple):
    """Weights, one per source, that apply from position `start` on."""

    start: int
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ScheduleRequest:
    """The schedule with the id `parent` (empty for none), with `entries` appended."""

    mixture: str
    expected_fingerprint: str
    parent: str
    entries: tuple[ScheduleEntry, ...]


@dataclass(frozen=True, slots=True)
class DefinedSchedule:
    """A schedule that the server knows, and the mixture's end under it: None if it is endless."""

    id: str
    end: int | None


def most_entries(sources: int) -> int:
    """How many entries a schedule of so many sources may have, including those of the mixture's configuration."""
    return _MOST_WEIGHTS // sources


def next_id(parent: str, entry: ScheduleEntry) -> str:
    """The id of the schedule `parent` (an id too) with `entry` appended; the first `parent` is the fingerprint."""
    packed = struct.pack(f"<q{len(entry.weights)}d", entry.start, *entry.weights)
    return hashlib.sha256(bytes.fromhex(parent) + packed).hexdigest()


def copy_pairs(given: Any) -> Any:
    """A copy of a user's schedule or skips; anything but a list of pairs is returned as it is, for a later check."""
    # The user may change a list later, and an iterator can be read only once.
    copy: Any = _copy(given)
    if not isinstance(copy, list):
        return copy
    pairs = cast(list[Any], copy)
    return [tuple(map(_copy, cast(Any, pair))) if isinstance(pair, tuple | list) else pair for pair in pairs]


def _copy(value: Any) -> Any:
    """A list of everything that can be iterated, except dicts, strings and sets."""
    if isinstance(value, Mapping):
        return dict(cast(Mapping[Any, Any], value))
    if isinstance(value, str | bytes | Set) or not hasattr(value, "__iter__"):
        return cast(Any, value)
    return list(value)
