"""The batches that an iterator has asked for and not yielded, in their order."""

from collections import deque
from dataclasses import dataclass

from mixserve_client.forks import leave_to_parent
from mixserve_client.reading.assembly import Batch, concatenate, no_rows
from mixserve_client.reading.background import BackgroundStream
from mixserve_client.reading.reader import Reader
from mixserve_client.reading.window import Fetch, Window
from mixserve_client.schema.fields import Field


@dataclass(slots=True)
class _Fetching:
    """A fetch under way, of which `left` batches have not been taken."""

    fetch: Fetch
    left: int
    readings: tuple[BackgroundStream, ...]

    def cancel(self) -> None:
        for reading in self.readings:
            reading.cancel()


class InFlight:
    """For one thread at a time; `cancel` alone may come from any."""

    def __init__(self, position: int):
        self.next_request_at = position
        self._fetching: deque[_Fetching] = deque()
        self._count = 0
        self._refill_at = 0

    def __bool__(self) -> bool:
        return bool(self._fetching)

    @property
    def wants_more(self) -> bool:
        """Whether so few are in flight that more are to be asked for."""
        return self._count <= self._refill_at

    def refill(self, reader: Reader, window: Window, at_least: int = 0) -> None:
        """Ask for what `window` has room for, so many batches `at_least`."""
        self._refill_at = window.refill_at(at_least)
        idle = not self._fetching
        for fetch in window.fetches(self.next_request_at, self._count, idle=idle, at_least=at_least):
            before = self._fetching[-1].readings[-1:] if self._fetching else ()
            readings = list(before)
            for part in fetch.parts:
                readings.append(reader.start(part, readings[-1] if readings else None))
            self._fetching.append(_Fetching(fetch, fetch.count, tuple(readings[len(before) :])))
            self._count += fetch.count * fetch.streams_per_batch
            self.next_request_at = fetch.end

    def first(self, fields: tuple[Field, ...], deadline: float | None) -> Batch:
        """The next batch, waited for; it stays in flight. Raises what fetching it raised, and DeadlineExceeded."""
        readings = self._fetching[0].readings
        if len(readings) == 1:
            return readings[0].take(deadline)
        return concatenate([reading.take(deadline) for reading in readings]) if readings else no_rows(fields)

    def pop(self) -> tuple[int | None, bool]:
        """The next batch is not in flight any more: where it ended, None if others of its fetch follow; and whether it
        was short."""
        first = self._fetching[0]
        first.left -= 1
        self._count -= first.fetch.streams_per_batch
        if first.left:
            return None, False
        self._fetching.popleft()
        return first.fetch.end, first.fetch.short

    def drop_after(self, position: int, otherwise: int, *, cut: bool = False) -> None:
        """Drop the batches that end after `position`, and with `cut` those that the mixture's end cut short: from the
        last that is left on, or from `otherwise`, they are asked for again."""
        while self._fetching and (self._fetching[-1].fetch.end > position or (cut and self._fetching[-1].fetch.cut)):
            dropped = self._fetching.pop()
            dropped.cancel()
            self._count -= dropped.left * dropped.fetch.streams_per_batch
        self.next_request_at = self._fetching[-1].fetch.end if self._fetching else otherwise

    def leave_to_parent(self, position: int) -> None:
        """In a forked process: nothing is in flight here, and what comes next begins at `position`."""
        leave_to_parent(tuple(self._fetching))
        self._fetching.clear()
        self._count, self.next_request_at = 0, position

    def cancel(self) -> None:
        """End all fetches; the batches that are waited for raise Unavailable."""
        for fetching in self._fetching.copy():
            fetching.cancel()
