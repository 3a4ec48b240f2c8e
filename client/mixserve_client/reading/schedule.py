"""A reader's own weights, by the position from which they replace the mixture's."""

import math
import operator
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from mixserve_client.appended import Appended
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.mixture import MixtureDescription
from mixserve_client.schema.positions import POSITION_LIMIT
from mixserve_client.schema.schedule import ScheduleEntry, ScheduleRequest, most_entries, next_id
from mixserve_client.wire.schedule import encode_schedule_request

# 512 KiB: older servers accept requests of up to 1 MiB.
_WEIGHTS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Schedule:
    """A reader's schedule for `mixture`: entries with strictly increasing starts. Made by `of` and `with_weights`."""

    mixture: MixtureDescription
    entries: Appended[ScheduleEntry] = field(default_factory=Appended[ScheduleEntry])
    ids: Appended[str] = field(default_factory=Appended[str])  # ids[i] is the id of the schedule up to entries[i]

    @classmethod
    def of(cls, mixture: MixtureDescription, given: Any) -> "Schedule":
        """The schedule in `given`: pairs (from position, weights), or None for none. Raises InvalidRequest."""
        schedule = cls(mixture)
        if given is None:
            return schedule
        if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__"):
            raise InvalidRequest(f"schedule must be a list of pairs (from position, weights), got {given!r:.200}")
        entries, ids = list[ScheduleEntry](), list[str]()
        for place, pair in enumerate(given):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            if not isinstance(pair, tuple | list) or len(pair) != 2:  # pyright: ignore[reportUnknownArgumentType]
                raise InvalidRequest(f"schedule[{place}] must be a pair (from position, weights), got {pair!r:.200}")
            start, weights = cast(Sequence[Any], pair)
            entry = schedule._entry(start, weights)
            if entries and entry.start <= entries[-1].start:
                raise InvalidRequest(f"schedule[{place}] must start after {entries[-1].start}, got {start!r:.100}")
            ids.append(next_id(ids[-1] if ids else mixture.fingerprint, entry))
            entries.append(entry)
        return schedule._of(Appended(entries), Appended(ids))

    def with_weights(self, start: Any, weights: Any) -> "Schedule":
        """This schedule up to `start`, and `weights` from there on; in epoch mode from the next block boundary on.

        Weights are a number per source, or a dict by the sources' names. Raises InvalidRequest.
        """
        entry = self._entry(start, weights)
        kept = bisect_left(self.entries, entry.start, key=lambda one: one.start)
        before = self.ids[kept - 1] if kept else self.mixture.fingerprint
        return self._of(self.entries[:kept].followed_by([entry]), self.ids[:kept].followed_by([next_id(before, entry)]))

    @property
    def id(self) -> str:
        """The id that requests name it by; empty if the mixture's own schedule is in force."""
        return self.ids[-1] if self.ids else ""

    def definitions(self, whole: bool = True) -> Iterator[bytes]:
        """The requests that define it at a server, in order; without `whole`, only the request of its last entry."""
        step = max(1, _WEIGHTS_AT_ONCE // len(self.mixture.sources))
        for at in range(0 if whole else max(0, len(self.entries) - 1), len(self.entries), step):
            parent = self.ids[at - 1] if at else ""
            entries = tuple(self.entries[at : at + step])
            yield encode_schedule_request(ScheduleRequest(self.mixture.name, self.mixture.fingerprint, parent, entries))

    @cached_property
    def plain(self) -> list[list[Any]]:
        """The pairs in plain JSON types; `of` accepts them."""
        return [[start, list(weights)] for start, weights in self.entries]

    def _of(self, entries: Appended[ScheduleEntry], ids: Appended[str]) -> "Schedule":
        most = most_entries(len(self.mixture.sources)) - len(self.mixture.schedule)
        if len(entries) > most:
            raise InvalidRequest(
                f"a schedule may have up to {most} entries of {len(self.mixture.sources)} weights, got {len(entries)}; "
                "change weights less often"
            )
        return replace(self, entries=entries, ids=ids)

    def _entry(self, start: Any, weights: Any) -> ScheduleEntry:
        return ScheduleEntry(self._start(start), self._weights(weights))

    def _start(self, start: Any) -> int:
        try:
            begin = -1 if isinstance(start, bool) else operator.index(start)  # a bool is an int, and a mistake
        except TypeError:
            begin = -1
        block = max(1, self.mixture.block_size)
        begin = -(-begin // block) * block
        if not 0 <= begin < POSITION_LIMIT:
            boundary = f", whose next block boundary is {begin}" if block > 1 and begin > 0 else ""
            raise InvalidRequest(f"weights must begin at a position in 0..2^63 - 2, got {start!r:.100}{boundary}")
        return begin

    def _weights(self, weights: Any) -> tuple[float, ...]:
        names = [source.name for source in self.mixture.sources]
        if isinstance(weights, Mapping):
            if set(weights) != set(names):  # pyright: ignore[reportUnknownArgumentType]
                raise InvalidRequest(
                    f"weights must be a number for each of {', '.join(names):.500}, got {weights!r:.500}"
                )
            weights = [weights[name] for name in names]
        try:
            if isinstance(weights, str | bytes | Set):  # a set has no order, and a string would count as its letters
                raise TypeError
            listed = list(weights)
            if any(isinstance(weight, bool | str | bytes) for weight in listed):
                raise TypeError
            numbers = tuple(map(float, listed))
        except (TypeError, ValueError, OverflowError):
            raise InvalidRequest(f"weights must be {len(names)} numbers, got {weights!r:.500}") from None
        if len(numbers) != len(names):
            raise InvalidRequest(f"weights must be {len(names)} numbers, one for each source, got {len(numbers)}")
        # From left to right, as the server does. `sum` compensates rounding errors from Python 3.12 on.
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
    """Raises InvalidRequest if the weights would change batches that were already yielded."""
    if start < position:
        raise InvalidRequest(f"from_position must be at least {position}, the start of the next batch, got {start}")
