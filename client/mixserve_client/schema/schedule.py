"""A reader's weight schedule and its id: a chain of hashes, so that one entry more is one hash more."""

import hashlib
import struct
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

Weights = Sequence[float] | Mapping[str, float]
Pairs = Sequence[tuple[int, Weights]]

_MOST_WEIGHTS = 1 << 20


class ScheduleEntry(NamedTuple):
    """Weights, one for each source, that hold from position `start` on."""

    start: int
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ScheduleRequest:
    """`entries`, appended to the schedule whose id is `parent`, empty for none."""

    mixture: str
    expected_fingerprint: str
    parent: str
    entries: tuple[ScheduleEntry, ...]


@dataclass(frozen=True, slots=True)
class DefinedSchedule:
    """A schedule that the server knows by now, and the mixture's end under it."""

    id: str
    end: int | None


def most_entries(sources: int) -> int:
    """How many entries the schedule of a mixture may have, those of its configuration included."""
    return _MOST_WEIGHTS // sources


def next_id(parent: str, entry: ScheduleEntry) -> str:
    """The id of the schedule `parent` and one more entry; `parent` of the first entry is the mixture's fingerprint."""
    packed = struct.pack(f"<q{len(entry.weights)}d", entry.start, *entry.weights)
    return hashlib.sha256(bytes.fromhex(parent) + packed).hexdigest()


def copy_pairs(given: Any) -> Any:
    """A copy of a user's schedule or skips, which may be an iterator that can be read once, and may be changed later.
    What is no list of pairs stays as it is, to be refused."""
    listed: Any = _copy(given)
    if not isinstance(listed, list):
        return listed
    pairs = cast(list[Any], listed)
    return [tuple(map(_copy, cast(Any, pair))) if isinstance(pair, tuple | list) else pair for pair in pairs]


def _copy(value: Any) -> Any:
    """A list for anything that can be iterated, but for dicts, strings and sets."""
    if isinstance(value, Mapping):
        return dict(cast(Mapping[Any, Any], value))
    if isinstance(value, str | bytes | Set) or not hasattr(value, "__iter__"):
        return cast(Any, value)
    return list(value)
