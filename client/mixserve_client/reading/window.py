"""What an iterator requests next: pure arithmetic on positions, shards and skips."""

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

# Skips may cut a batch into pieces, and each piece is a separate stream. A batch of more pieces than this is requested
# as a list of positions instead, which is one stream.
_FEW_PIECES = 4


@dataclass(frozen=True, slots=True)
class Fetch:
    """`count` batches that are requested together; the positions of the last one end at `end`.

    Several `parts` make up one batch. Without parts the batches have no rows, as in a shard of a short batch.
    """

    parts: tuple[StridedRange | PositionList, ...]
    count: int
    end: int
    cut: bool = False  # whether the positions end within the group
    short: bool = False  # whether they end within this worker's batch

    @property
    def streams_per_batch(self) -> int:
        """How much one of its batches counts against the window."""
        return max(1, len(self.parts))


@dataclass(frozen=True, slots=True)
class Window:
    """How far an iterator of `shard` prefetches, up to the position `stop`."""

    shard: Shard
    skips: Skips
    stop: int
    drop_remainder: bool
    row_bytes: int
    prefetch: int

    def fetches(self, start: int, in_flight: int, *, idle: bool, at_least: int = 0, early: bool = False) -> list[Fetch]:
        """What to request from position `start` on if `in_flight` batches are in flight; `idle` if no fetch is.

        Requests half of the window at a time, so that one stream opens while another one ends, and at least `at_least`
        batches. If it is `early`, as much as there is room for, though it is less.
        """
        most, half = self._most(at_least), self._half(at_least)
        if early:
            half = max(1, min(half, most - in_flight))
        found = list[Fetch]()
        while most - in_flight >= half and (start := self.skips.first_from(start)) < self.stop:
            # The first batch comes alone: otherwise the server would plan it with later ones, and the trainer waits.
            fetch = self._fetch(start, half if found or not idle else 1)
            if fetch is None:
                break
            found.append(fetch)
            in_flight += fetch.count * fetch.streams_per_batch
            start = fetch.end
        return found

    def refill_at(self, at_least: int = 0) -> int:
        """Refill the window when this few batches are in flight."""
        return self._most(at_least) - self._half(at_least)

    def _most(self, at_least: int) -> int:
        return max(at_least, batches_ahead(self._batch_bytes, self.prefetch))

    def _half(self, at_least: int) -> int:
        return max(1, self._most(at_least) // 2)

    @property
    def _batch_bytes(self) -> int:
        return self.shard.rows * self.row_bytes

    def _fetch(self, start: int, most: int) -> Fetch | None:
        """Up to `most` batches from `start` on, the start of a group; None if the rest does not make a batch."""
        shard, size = self.shard, self.shard.group
        whole = (min(self.stop, self.skips.border_after(start)) - start) // size
        if whole:
            count = whole_replies(start // size, min(most, whole), reply_batches(self._batch_bytes))
            offset, rows = shard.of(size)
            return Fetch(
                (StridedRange(start + offset, rows, size, count),) if rows else (), count, start + count * size
            )
        # A skip or the end lies within the group.
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
    """The streams to request for one batch that consists of these (start, size) ranges."""
    if len(ranges) <= _FEW_PIECES:
        return [StridedRange(first, taken, taken, 1) for first, taken in ranges]
    return [PositionList(np.concatenate([np.arange(first, first + taken, dtype=np.int64) for first, taken in ranges]))]
