"""Which rows are asked for, by whom and in how large pieces: pure arithmetic on positions."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mixserve_client.schema.positions import Positions, Range

# Measured: smaller replies cost more for themselves than for what they carry, larger ones save little.
_REPLY_BYTES = 1 << 20
# What is read ahead. Streams are half of it: opening one costs as much as a reply or two.
_READ_AHEAD_BYTES = 32 << 20
_READ_AHEAD_BATCHES = 4096


@dataclass(frozen=True, slots=True)
class StridedRange:
    """`count` batches of `size` rows; each begins `stride` positions behind the one before it."""

    start: int
    size: int
    stride: int
    count: int

    def after(self, rows: int) -> "StridedRange | None":
        """What is left when the first `rows` rows have come: the rest of a batch that was begun, else whole batches.

        None where nothing is left.
        """
        batch, offset = divmod(rows, self.size)
        if batch == self.count:
            return None
        start = self.start + batch * self.stride
        if offset:
            return StridedRange(start + offset, self.size - offset, self.size - offset, 1)
        return replace(self, start=start, count=self.count - batch)


@dataclass(frozen=True, slots=True, eq=False)
class PositionList:
    """The one batch that has the rows at `positions`, in any order."""

    positions: Positions

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.positions)

    @property
    def count(self) -> int:
        """One batch."""
        return 1

    def after(self, rows: int) -> "PositionList | None":
        """What is left when the first `rows` rows have come."""
        return PositionList(self.positions[rows:]) if rows < self.size else None


def reply_batches(batch_bytes: int) -> int:
    """How many batches of that size are asked for in one reply."""
    return max(1, _REPLY_BYTES // max(1, batch_bytes))


def batches_ahead(batch_bytes: int, prefetch: int) -> int:
    """How many batches a reader asks for before it needs them, where it asks for `prefetch` of them at least."""
    if prefetch == 0:
        return 0
    return max(prefetch, min(_READ_AHEAD_BATCHES, _READ_AHEAD_BYTES // max(1, batch_bytes)))


def whole_replies(first: int, most: int, per_reply: int) -> int:
    """How many batches, up to `most`, to ask for from batch number `first` on.

    All readers cut the stream of batches at the multiples of `per_reply`, so that their replies can be shared.
    """
    if first % per_reply:
        return min(most, per_reply - first % per_reply)
    return most - most % per_reply if most > per_reply else most


@dataclass(frozen=True, slots=True)
class Shard:
    """What one reader takes: shard (i, n) of every batch, of which worker (w, m) takes the w-th of every m.

    m batches in a row are a group.
    """

    batch_size: int
    shard: tuple[int, int]
    worker: tuple[int, int]

    @property
    def group(self) -> int:
        """The positions of a group."""
        return self.batch_size * self.worker[1]

    @property
    def rows(self) -> int:
        """The rows of a whole batch."""
        return self.of(self.group)[1]

    def has_batch(self, size: int, *, whole: bool) -> bool:
        """Whether there is a batch, a `whole` one, in a group that has only `size` positions, since they end there."""
        return size - self.worker[0] * self.batch_size >= (self.batch_size if whole else 1)

    def of(self, size: int) -> tuple[int, int]:
        """(offset, rows) in a group of `size` positions: of a batch of s rows they are [i*s//n, (i+1)*s//n)."""
        before = min(size, self.worker[0] * self.batch_size)
        rows, (index, count) = min(self.batch_size, size - before), self.shard
        first, last = index * rows // count, (index + 1) * rows // count
        return before + first, last - first


def part(ranges: Iterable[Range], offset: int, rows: int) -> list[Range]:
    """The rows [offset, offset + rows) of what the (start, size) ranges hold one after another."""
    found = list[Range]()
    for start, size in ranges:
        first, last = max(0, offset), min(size, offset + rows)
        if first < last:
            found.append((start + first, last - first))
        offset -= size
    return found
