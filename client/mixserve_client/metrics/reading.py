"""What iterators and single calls have read, and how long their callers waited."""

import os
import secrets
import threading
import weakref
from collections import deque
from dataclasses import dataclass, field

from mixserve_client.metrics.wait_share import WaitShare
from mixserve_client.schema.histogram import Histogram

_MOST_NOTES = 1024


class IteratorFigures:
    """The figures of one iterator. Its caller's thread notes; any thread may read."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.is_listed = False  # among those of the client in this process
        # Reentrant: a signal handler may read on in a thread that holds it.
        self.lock = threading.RLock()
        self.number = secrets.randbits(64) or 1  # by which servers know it; 0 is for calls that belong to no iterator
        self.waits = WaitShare()
        self.batches = 0
        self.seconds = Histogram()
        self._notes = deque[float]()  # waits that have not been added up
        self._rows = self._row_bytes = 0
        # Of the batches of other rows or row sizes than those now, and how many rows the later, short ones lack.
        self._batches = self._records = self._bytes = self._lacking = 0

    def renew_after_fork(self) -> None:
        """This copy is a reader of its own."""
        self._begin()

    def note(self, came: float, now: float, rows: int) -> None:
        """The caller that came at `came` has a batch."""
        self.waits.leave(came, now)
        self._notes.append(now - came)
        if rows != self._rows:
            self._lacking += self._rows - rows

    def expect(self, rows: int, row_bytes: int) -> None:
        """From now on a batch has `rows` rows of `row_bytes` bytes, if it is not short."""
        if (rows, row_bytes) != (self._rows, self._row_bytes):
            self.add_up()
            self._records, self._bytes = self.records, self.bytes
            self._batches, self._lacking = self.batches, 0
            self._rows, self._row_bytes = rows, row_bytes
        elif len(self._notes) >= _MOST_NOTES:
            self.add_up()

    def add_up(self) -> None:
        """Bring `batches`, `records`, `bytes` and `seconds` up to date."""
        with self.lock:
            notes = [self._notes.popleft() for _ in range(len(self._notes))]
            if notes:
                self.batches += len(notes)
                self.seconds.add(notes)

    @property
    def records(self) -> int:
        """The records in all batches."""
        return self._records + self._later_records

    @property
    def bytes(self) -> int:
        """The bytes of the arrays of all batches."""
        return self._bytes + self._later_records * self._row_bytes

    @property
    def _later_records(self) -> int:
        return (self.batches - self._batches) * self._rows - self._lacking


@dataclass(slots=True)
class Totals:
    """What was read of one mixture."""

    batches: int = 0
    records: int = 0
    bytes: int = 0
    waited_s: float = 0.0
    started_s: float = 0.0
    seconds: Histogram = field(default_factory=Histogram)

    def add(self, figures: IteratorFigures) -> None:
        """Add those of an iterator."""
        figures.add_up()
        self.batches += figures.batches
        self.records += figures.records
        self.bytes += figures.bytes
        self.waited_s += figures.waits.waited_s
        self.started_s += figures.waits.started_s
        self.seconds.merge(figures.seconds)

    def copy(self) -> "Totals":
        """The same, to be added to."""
        found = Totals(self.batches, self.records, self.bytes, self.waited_s, self.started_s)
        found.seconds.merge(self.seconds)
        return found


class ReadingFigures:
    """What a client has read in this process. Thread-safe. It keeps no iterator alive."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._iterators = dict[IteratorFigures, str]()  # with their mixtures
        self._totals = dict[str, Totals]()  # of single calls, and of iterators that are gone
        # Reentrant: the garbage collector may drop an iterator in a thread that holds it.
        self._lock = threading.RLock()

    def add(self, owner: object, figures: IteratorFigures, mixture: str) -> None:
        """Count `figures`, of an iterator of `mixture`, also when their `owner` is gone."""
        with self._lock:
            # One lock for all: with two, a finalizer might take them in the other order.
            figures.is_listed, figures.lock = True, self._lock
            self._iterators[figures] = mixture
        weakref.finalize(owner, self._settle, figures).atexit = False

    def note_call(self, mixture: str, rows: int, row_bytes: int) -> None:
        """A single call has returned a batch."""
        with self._lock:
            totals = self._of(mixture)
            totals.batches += 1
            totals.records += rows
            totals.bytes += rows * row_bytes

    def totals(self) -> dict[str, Totals]:
        """What was read, by mixture."""
        with self._lock:
            found = dict[str, Totals]()
            for name, totals in self._totals.items():
                found[name] = totals.copy()
            for figures, mixture in self._iterators.items():
                found.setdefault(mixture, Totals()).add(figures)
            return found

    def waits(self) -> list[tuple[str, WaitShare]]:
        """The waits of all iterators that there are, with their mixtures."""
        with self._lock:
            return [(mixture, figures.waits) for figures, mixture in self._iterators.items()]

    def _settle(self, figures: IteratorFigures) -> None:
        if self._pid != os.getpid():
            return  # they are the parent's, and a thread that is not here may hold the lock
        with self._lock:
            mixture = self._iterators.pop(figures, None)
            if mixture is not None:
                self._of(mixture).add(figures)

    def _of(self, mixture: str) -> Totals:
        found = self._totals.get(mixture)
        if found is None:  # not `setdefault`, which would make one for each call
            found = self._totals[mixture] = Totals()
        return found
