"""Ranges of positions, shards of batches, and sizes of replies: pure arithmetic."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mixserve_client.schema.positions import Positions, Range

# Measured: a smaller reply costs more than the bytes in it, and a larger one saves little.
_REPLY_BYTES = 1 << 20
# How much an iterator prefetches. A stream has half of it, 16 MiB: opening one costs as much as one or two replies.
_READ_AHEAD_BYTES = 32 << 20
_READ_AHEAD_BATCHES = 4096


@dataclass(frozen=True, slots=True)
class StridedRange:
    """`count` batches of `size` rows; each starts `stride` positions after the start of the one before it."""

    start: int
    size: int
    stride: int
    count: int

    def after(self, rows: int) -> "StridedRange | None":
        """What is left after the first `rows` rows: the rest of an incomplete batch, else whole batches.

        None if nothing is left.
        """
        batch, offset = divmod(rows, self.size)
        if batch == self.count:
            return None
        start = self.start + batch * self.stride
        if offset:
            # Only that batch, since one stride cannot describe a shorter first batch; the next request has the others.
            return StridedRange(start + offset, self.size - offset, self.size - offset, 1)
        return replace(self, start=start, count=self.count - batch)


@dataclass(frozen=True, slots=True, eq=False)
class PositionList:
    """One batch, of the rows at `positions`, which may be in any order and repeat."""

    positions: Positions

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.positions)

    @property
    def count(self) -> int:
        """The number of batches: always 1."""
        return 1

    def after(self, rows: int) -> "PositionList | None":
        """What is left after the first `rows` rows; None if nothing is."""
        return PositionList(self.positions[rows:]) if rows < self.size else None


def reply_batches(batch_bytes: int) -> int:
    """How many batches of `batch_bytes` bytes go into one reply."""
    return max(1, _REPLY_BYTES // max(1, batch_bytes))


def batches_ahead(batch_bytes: int, prefetch: int) -> int:
    """How many batches an iterator keeps in flight: `prefetch` at least, and as many small ones as make up 32 MiB."""
    if prefetch == 0:
        return 0
    return max(prefetch, min(_READ_AHEAD_BATCHES, _READ_AHEAD_BYTES // max(1, batch_bytes)))


def whole_replies(first: int, most: int, per_reply: int) -> int:
    """How many batches, up to `most`, to request from batch number `first` on.

    All readers cut the stream of batches at multiples of `per_reply`, so that the server can share replies among them.
    """
    if first % per_reply:
        return min(most, per_reply - first % per_reply)
    return most - most % per_reply if most > per_reply else most


@dataclass(frozen=True, slots=True)
class Shard:
    """What one reader takes: shard (i, n) of every batch, and as worker (w, m) only the w-th of every m batches.

    m consecutive batches are a group.
    """

    batch_size: int
    shard: tuple[int, int]
    worker: tuple[int, int]

    @property
    def group(self) -> int:
        """The number of positions in a whole group."""
        return self.batch_size * self.worker[1]

    @property
    def rows(self) -> int:
        """This shard's rows of a whole batch."""
        return self.of(self.group)[1]

    def has_batch(self, size: int, *, whole: bool) -> bool:
        """Whether a group of only `size` positions has a batch for this worker; with `whole`, a whole one."""
        return size - self.worker[0] * self.batch_size >= (self.batch_size if whole else 1)

    def of(self, size: int) -> tuple[int, int]:
        """(offset, rows) of this reader's rows in a group of `size` positions: [i*s//n, (i+1)*s//n) of a batch of s."""
        before = min(size, self.worker[0] * self.batch_size)
        rows, (index, count) = min(self.batch_size, size - before), self.shard
        first, last = index * rows // count, (index + 1) * rows // count
        return before + first, last - first


def part(ranges: Iterable[Range], offset: int, rows: int) -> list[Range]:
    """The rows [offset, offset + rows) of the concatenated (start, size) ranges, as (start, size) ranges."""
    found = list[Range]()
    for start, size in ranges:
        first, last = max(0, offset), min(size, offset + rows)
        if first < last:
            found.append((start + first, last - first))
        offset -= size
    return found
