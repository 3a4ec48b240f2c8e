"""What an iterator asks for next: pure arithmetic on positions, shards and skips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixserve_client.reading.ranges import (
    PositionList,
    Shard,
    StridedRange,
    batches_ahead,
    part,
    reply_batches,
    whole_replies,
)
from mixserve_client.reading.skips import Skips
from mixserve_client.schema.positions import Range

# One batch of more pieces than this is asked for by its positions: each piece would be a stream of its own.
_FEW_PIECES = 4


@dataclass(frozen=True, slots=True)
class Fetch:
    """`count` batches that are asked for together; the positions of the last one end at `end`.

    Several `parts` make up one batch, and without any the batches have no rows.
    """

    parts: tuple[StridedRange | PositionList, ...]
    count: int
    end: int
    cut: bool = False  # whether the positions end within its group
    short: bool = False  # and within its batch

    @property
    def streams_per_batch(self) -> int:
        """What one of its batches counts of what may be in flight."""
        return max(1, len(self.parts))


@dataclass(frozen=True, slots=True)
class Window:
    """How far a reader of `shard` asks ahead, up to the position `stop`."""

    shard: Shard
    skips: Skips
    stop: int
    drop_remainder: bool
    row_bytes: int
    prefetch: int

    def fetches(self, start: int, in_flight: int, *, idle: bool, at_least: int = 0) -> list[Fetch]:
        """What to ask for from position `start` on, when `in_flight` batches are; `idle` if nothing at all is.

        Half of the window at a time, so that one stream is open while another one ends; `at_least` so many batches.
        """
        half = self._half(at_least)
        found = list[Fetch]()
        while self._most(at_least) - in_flight >= half and (start := self.skips.first_from(start)) < self.stop:
            fetch = self._fetch(start, half if found or not idle else 1)
            if fetch is None:
                break
            found.append(fetch)
            in_flight += fetch.count * fetch.streams_per_batch
            start = fetch.end
        return found

    def refill_at(self, at_least: int = 0) -> int:
        """The number of batches in flight at which to ask for more."""
        return self._most(at_least) - self._half(at_least)

    def _most(self, at_least: int) -> int:
        return max(at_least, batches_ahead(self._batch_bytes, self.prefetch))

    def _half(self, at_least: int) -> int:
        return max(1, self._most(at_least) // 2)

    @property
    def _batch_bytes(self) -> int:
        return self.shard.rows * self.row_bytes

    def _fetch(self, start: int, most: int) -> Fetch | None:
        """Up to `most` batches from `start` on, where a group begins; None if the rest is no batch."""
        shard, size = self.shard, self.shard.group
        whole = (min(self.stop, self.skips.border_after(start)) - start) // size
        if whole:
            # Replies begin at multiples of a reply's batches, so that readers of the same batches share them.
            count = whole_replies(start // size, min(most, whole), reply_batches(self._batch_bytes))
            offset, rows = shard.of(size)
            return Fetch(
                (StridedRange(start + offset, rows, size, count),) if rows else (), count, start + count * size
            )
        # A group that a skip interrupts, or the end.
        ranges, end = self.skips.take(start, size, self.stop)
        there = sum(taken for _, taken in ranges)
        if not shard.has_batch(there, whole=self.drop_remainder):
            return None
        return Fetch(
            tuple(_parts(part(ranges, *shard.of(there)))),
            count=1,
            end=end,
            cut=there < size,
            short=not shard.has_batch(there, whole=True),
        )


def _parts(ranges: list[Range]) -> Sequence[StridedRange | PositionList]:
    """The (start, size) ranges that one batch consists of, as what streams ask for."""
    if len(ranges) <= _FEW_PIECES:
        return [StridedRange(first, taken, taken, 1) for first, taken in ranges]
    return [PositionList(np.concatenate([np.arange(first, first + taken, dtype=np.int64) for first, taken in ranges]))]
