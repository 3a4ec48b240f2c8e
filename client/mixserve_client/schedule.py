"""A reader's own weights: what is in force from which position on, in place of what the mixture has from there."""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixserve_client.errors import InvalidRequest
from mixserve_client.wire.description import MixtureDescription
from mixserve_client.wire.request import POSITION_LIMIT
from mixserve_client.wire.schedule import ScheduleEntry, ScheduleRequest, encode_schedule_request, next_id

Weights = Sequence[float] | Mapping[str, float]
Pairs = Sequence[tuple[int, Weights]]

# Requests have a limit of 1 MiB.
_WEIGHTS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Schedule:
    """The entries of a reader of `mixture`, ascending; made by `of` and `with_weights`."""

    mixture: MixtureDescription
    entries: tuple[ScheduleEntry, ...] = ()
    ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, mixture: MixtureDescription, given: Any) -> "Schedule":
        """The schedule in `given`: pairs of a position and weights from there on, or None. Raises InvalidRequest."""
        schedule = cls(mixture)
        pairs: Any = () if given is None else given
        if isinstance(pairs, str | bytes | Mapping) or not hasattr(pairs, "__iter__"):
            raise InvalidRequest(f"schedule must be a list of pairs (from position, weights), got {given!r:.200}")
        for place, pair in enumerate(pairs):
            if isinstance(pair, str | bytes) or not hasattr(pair, "__len__") or len(pair) != 2:
                raise InvalidRequest(f"schedule[{place}] must be a pair (from position, weights), got {pair!r:.200}")
            last = schedule.entries[-1].start if schedule.entries else -1
            extended = schedule.with_weights(pair[0], pair[1])
            if extended.entries[-1].start <= last:
                raise InvalidRequest(f"schedule[{place}] must begin behind {last}, got {pair[0]!r}")
            schedule = extended
        return schedule

    def with_weights(self, start: Any, weights: Any) -> "Schedule":
        """This schedule before `start`, and `weights` from there on; in epoch mode from the next border of a block on.

        Weights are a number per source, or a dict by the sources' names. Raises InvalidRequest.
        """
        begin = self._start(start)
        kept = sum(1 for entry in self.entries if entry.start < begin)
        entry = ScheduleEntry(begin, self._weights(weights))
        before = self.ids[kept - 1] if kept else self.mixture.fingerprint
        ids = (*self.ids[:kept], next_id(before, entry))
        return replace(self, entries=(*self.entries[:kept], entry), ids=ids)

    @property
    def id(self) -> str:
        """What requests name it by; empty for the mixture's own."""
        return self.ids[-1] if self.ids else ""

    def definitions(self) -> Iterator[bytes]:
        """The requests that tell it to a server, in their order."""
        step = max(1, _WEIGHTS_AT_ONCE // len(self.mixture.sources))
        for at in range(0, len(self.entries), step):
            parent = self.ids[at - 1] if at else ""
            entries = self.entries[at : at + step]
            yield encode_schedule_request(ScheduleRequest(self.mixture.name, self.mixture.fingerprint, parent, entries))

    def plain(self) -> list[list[Any]]:
        """The pairs in plain JSON types, from which `of` makes it again."""
        return [[start, list(weights)] for start, weights in self.entries]

    def _start(self, start: Any) -> int:
        try:
            begin = -1 if isinstance(start, bool) else operator.index(start)
        except TypeError:
            begin = -1
        block = max(1, self.mixture.block_size)
        begin = -(-begin // block) * block
        if not 0 <= begin < POSITION_LIMIT:
            raise InvalidRequest(f"weights must begin at a position in 0..2^63 - 2, got {start!r}")
        return begin

    def _weights(self, weights: Any) -> tuple[float, ...]:
        names = [source.name for source in self.mixture.sources]
        if isinstance(weights, Mapping):
            if set(weights) != set(names):  # pyright: ignore[reportUnknownArgumentType]
                raise InvalidRequest(f"weights must be a number for each of {', '.join(names)}, got {weights!r:.500}")
            weights = [weights[name] for name in names]
        try:
            if isinstance(weights, str | bytes):
                raise TypeError
            numbers = tuple(map(float, weights))
        except (TypeError, ValueError):
            raise InvalidRequest(f"weights must be {len(names)} numbers, got {weights!r:.500}") from None
        if len(numbers) != len(names):
            raise InvalidRequest(f"weights must be {len(names)} numbers, one for each source, got {len(numbers)}")
        total = 0.0
        for number in numbers:
            total += number
        if not all(number >= 0 for number in numbers) or not 0 < total < math.inf:
            raise InvalidRequest(f"weights must be positive or zero, of a positive, finite sum, got {numbers!r:.500}")
        for source, number in zip(self.mixture.sources, numbers, strict=True):
            if number > 0 and source.length == 0:
                raise InvalidRequest(f"the source {source.name!r} has no records but the weight {number}; give it 0")
        return numbers


def check_weights_ahead(start: int, position: int) -> None:
    """Raises InvalidRequest where weights would change batches that were yielded already."""
    if start < position:
        raise InvalidRequest(
            f"from_position must be at least {position}, the first position that was not yielded yet, got {start}"
        )
