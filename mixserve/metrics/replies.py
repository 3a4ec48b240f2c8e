"""What the replies of one mixture held, and how long each step of making them took."""

import time
from collections.abc import Sequence
from itertools import chain, compress
from typing import Protocol, TypeVar

import numpy as np
from jaxtyping import Int, Int64

from mixserve.metrics.clients import ClientNames, Reader, Readers
from mixserve.metrics.journal import Journal
from mixserve.metrics.requested import LeafShares, Requested
from mixserve.mixture.schedule import Schedule
from mixserve_client.schema.histogram import Histogram
from mixserve_client.schema.positions import Range

K = TypeVar("K")
clock = time.perf_counter

STAGES = ("plan", "gather", "encode", "send")
# Notes keep the plans of their replies: those of more rows than `_MANY` are added up when they have `_MOST_ROWS`.
_MANY, _MOST_ROWS = 4096, 1 << 20
_FEW_LEAVES = 16  # which are counted sooner one after another: `bincount` takes as long as to compare with 20 numbers

# Tuples without names: they are made beside each reply. Seconds to plan, to gather and to encode its rows.
Times = tuple[float, float, float]
# What is noted of a reply: the leaf of each row, the positions, the bytes of a row, the weights (None: the rows were
# asked for by the ids of their records), its reader, the times (None: noted with another one), and the seconds that the
# reply before it took to be sent (None: there was none).
_Note = tuple[Int[np.ndarray, " rows"], Sequence[Range], int, Schedule | None, Reader, Times | None, float | None]


class Counted(Protocol):
    """A reply that was made."""

    @property
    def leaf_ids(self) -> Int[np.ndarray, " rows"]:
        """The leaf of each row."""
        ...

    def take_times(self) -> Times | None:
        """What it took to make it. None if several readers share it, and another one has taken that."""
        ...


class ReplyNotes:
    """Notes the replies to one request, by one note for each. For one thread at a time."""

    __slots__ = ("_figures", "_reader", "_row_bytes", "_schedule", "sent_s")

    def __init__(self, figures: "MixtureFigures", reader: Reader, row_bytes: int, schedule: Schedule | None):
        """`schedule` is None if rows are asked for by the ids of their records, and not by positions."""
        self._figures, self._reader = figures, reader
        self._row_bytes, self._schedule = row_bytes, schedule
        self.sent_s: float | None = None  # of the last reply: from giving it to the transport until it wants the next

    def note(self, reply: Counted, ranges: Sequence[Range]) -> None:
        """A reply with the rows of `ranges` goes to the reader."""
        leaf_ids, replies = reply.leaf_ids, self._figures.replies
        # Before it is sent: who has read a batch, and asks for the figures then, finds it there.
        replies.note((leaf_ids, ranges, self._row_bytes, self._schedule, self._reader, reply.take_times(), self.sent_s))
        self.sent_s = None
        if len(leaf_ids) > _MANY:
            self._figures.keep_few_rows(len(leaf_ids))

    def end(self) -> None:
        """There are no more replies."""
        if self.sent_s is not None:
            self._figures.note_send(self.sent_s)


class MixtureFigures:
    """The figures of one mixture. Thread-safe, once `add_up` has been called by the thread that reads them."""

    def __init__(self, leaves: Sequence[str], leaf_shares: LeafShares, names: ClientNames):
        """`leaves` are the names of its sources, those of nested mixtures with a path."""
        self.leaves = tuple(leaves)
        self.count = 0  # of replies
        self.records: Int64[np.ndarray, " leaves"] = np.zeros(len(leaves), np.int64)
        self.bytes: Int64[np.ndarray, " leaves"] = np.zeros(len(leaves), np.int64)
        self.requested = Requested(leaf_shares, len(leaves))
        self.stages = {stage: Histogram() for stage in STAGES}
        self.made = Histogram()  # planning, gathering and encoding together
        self.readers = Readers(names)
        self.replies = Journal[_Note](self._add_replies)
        self._many_rows = 0
        self._sends = Journal[float](self.stages["send"].add)
        self.note_send = self._sends.note  # of replies after which no other one came

    def add_up(self) -> None:
        """Bring the figures up to date."""
        self.replies.add_up()
        self._sends.add_up()

    def keep_few_rows(self, noted: int) -> None:
        """A reply of so many rows, which are many, has been noted."""
        self._many_rows += noted  # about, since threads may do this at once
        if self._many_rows >= _MOST_ROWS:
            self._many_rows = 0
            self.replies.add_up()

    def _add_replies(self, notes: list[_Note]) -> None:
        leaf_ids, ranges, row_bytes, schedules, readers, times, sent = zip(*notes, strict=True)
        self.count += len(notes)
        rows = list(map(len, leaf_ids))
        sizes = set(row_bytes)
        for size in sizes:
            same = leaf_ids if len(sizes) == 1 else compress(leaf_ids, [one == size for one in row_bytes])
            counts = _count(np.concatenate(list(same)), len(self.leaves))
            self.records += counts
            self.bytes += counts * size
        self._add_requested(leaf_ids, schedules, ranges, rows)
        for reader, count in _sums(readers, rows).items():
            self.readers.add_records(reader.client, count)
        for reader, (schedule, last) in dict(zip(readers, zip(schedules, ranges, strict=True), strict=True)).items():
            if schedule is not None:
                reader.position = last[0][0]
        self._add_times([one for one in times if one is not None])
        self.stages["send"].add([one for one in sent if one is not None])

    def _add_requested(
        self,
        leaf_ids: Sequence[Int[np.ndarray, " rows"]],
        schedules: Sequence[Schedule | None],
        ranges: Sequence[Sequence[Range]],
        rows: list[int],
    ) -> None:
        numbers = list(map(id, schedules))  # the hash of a schedule takes long
        found = dict(zip(numbers, schedules, strict=True))
        one_by_one = False
        for number, count in _sums(numbers, rows).items():
            schedule = found[number]
            if schedule is not None and schedule.has_one_entry:
                self.requested.add(schedule, (), count)
            else:
                one_by_one = True
        if not one_by_one:  # mostly
            return
        for ids, schedule, places, count in zip(leaf_ids, schedules, ranges, rows, strict=True):
            if schedule is None:
                self.requested.add_taken(ids)
            elif not schedule.has_one_entry:
                self.requested.add(schedule, places, count)

    def _add_times(self, times: list[Times]) -> None:
        plan_s, gather_s, encode_s = np.fromiter(chain.from_iterable(times), np.float64).reshape(-1, 3).T
        self.stages["plan"].add(plan_s)
        self.stages["gather"].add(gather_s)
        self.stages["encode"].add(encode_s)
        self.made.add(plan_s + gather_s + encode_s)


def _count(leaf_ids: Int[np.ndarray, " rows"], leaves: int) -> Int64[np.ndarray, " leaves"]:
    """How many rows come from each leaf."""
    if leaves > _FEW_LEAVES:
        return np.bincount(leaf_ids, minlength=leaves)
    counts = np.array([np.count_nonzero(leaf_ids == leaf) for leaf in range(1, leaves)], np.int64)
    return np.concatenate(([len(leaf_ids) - counts.sum()], counts))


def _sums(keys: Sequence[K], numbers: list[int]) -> dict[K, int]:
    """The sum of the numbers of each key."""
    if len(set(keys)) == 1:  # mostly
        return {keys[0]: sum(numbers)}
    found = dict.fromkeys(keys, 0)
    for key, number in zip(keys, numbers, strict=True):
        found[key] += number
    return found
