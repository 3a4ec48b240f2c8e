"""Requests for rows: a batch, a stream of batches, positions in any order, and records of one source."""

from dataclasses import dataclass
from typing import NamedTuple

from mixserve_client.schema.fields import Content
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.positions import Positions, Range, ranges_of


class Sender(NamedTuple):
    """Who sends a request, for the server's statistics, logs and traces. It changes no reply.

    `reader` is the number of the iterator, 0 for a call that belongs to none, and `wait_share` which part of its time
    its trainer waits for batches, in 0..1. `trace` is a `traceparent` of W3C Trace Context, empty for none.
    """

    client: str = ""
    reader: int = 0
    wait_share: float | None = None
    trace: str = ""


_UNKNOWN = Sender()


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """The rows [start, start + size) of a mixture under a key.

    An empty `expected_fingerprint` accepts any mixture. `schedule` is the id of the reader's schedule, empty for the
    mixture's own.
    """

    mixture: str
    start: int
    size: int
    key: KeyWords
    expected_fingerprint: str = ""
    schedule: str = ""
    content: Content = Content.RECORDS
    slots: tuple[int, ...] = ()
    sender: Sender = _UNKNOWN


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """The rows of `count` batches whose starts are `stride` positions apart, in replies of `reply_rows` rows."""

    first: BatchRequest
    stride: int
    count: int
    reply_rows: int
    slots: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows in all batches."""
        return self.first.size * self.count

    def ranges(self, at: int, rows: int) -> list[Range]:
        """The fewest (start, size) ranges of the positions of the rows [at, at + rows)."""
        size = self.first.size
        if self.stride == size:
            return [(self.first.start + at, rows)]
        found = list[Range]()
        while rows > 0:
            batch, offset = divmod(at, size)
            taken = min(rows, size - offset)
            found.append((self.first.start + batch * self.stride + offset, taken))
            at, rows = at + taken, rows - taken
        return found


@dataclass(frozen=True, slots=True, eq=False)
class PositionsRequest:
    """The rows at `positions` (int64, in any order), in replies of `reply_rows` rows."""

    mixture: str
    positions: Positions
    key: KeyWords
    reply_rows: int
    expected_fingerprint: str = ""
    schedule: str = ""
    content: Content = Content.RECORDS
    slots: tuple[int, ...] = ()
    sender: Sender = _UNKNOWN

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.positions)

    def ranges(self, at: int, rows: int) -> list[Range]:
        """The fewest (start, size) ranges of the positions of the rows [at, at + rows)."""
        return ranges_of(self.positions[at : at + rows])


# How many servers may pass a request for records on, one to the next.
MOST_HOPS = 8


@dataclass(frozen=True, slots=True, eq=False)
class RecordsRequest:
    """The records of a source at `record_ids` (int64, in any order), in replies of `reply_rows` rows.

    An empty `expected_fingerprint` accepts any source. `hops` is how many servers have asked for others before.
    """

    mixture: str
    source: str
    record_ids: Positions
    reply_rows: int
    expected_fingerprint: str = ""
    hops: int = 0
    slots: tuple[int, ...] = ()
    sender: Sender = _UNKNOWN

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.record_ids)

    def ranges(self, at: int, rows: int) -> list[Range]:
        """The fewest (first record, size) ranges of the records of the rows [at, at + rows)."""
        return ranges_of(self.record_ids[at : at + rows])
