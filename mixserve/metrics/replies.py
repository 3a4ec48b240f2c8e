"""What the replies of one mixture held, and how long each step of making them took."""

import time
from collections.abc import Sequence
from itertools import chain

import numpy as np
from jaxtyping import Int, Int64

from mixserve.metrics.clients import ClientNames, Reader, Readers
from mixserve.metrics.journal import Journal
from mixserve.metrics.requested import LeafShares, Requested
from mixserve.mixture.schedule import Schedule
from mixserve_client.schema.histogram import Histogram
from mixserve_client.schema.positions import Range

clock = time.perf_counter

STAGES = ("plan", "gather", "encode", "send")
_MANY = 4096  # rows of a reply that are counted at once: notes must not keep much memory


# Tuples without names: they are made beside each reply. Seconds to plan, to gather and to encode its rows.
Times = tuple[float, float, float]
# What a reply holds: the leaf of each row, the positions, the bytes of a row, the weights (None: the rows were asked
# for by the ids of their records), and its reader.
Reply = tuple[Int[np.ndarray, " rows"], Sequence[Range], int, Schedule | None, Reader]


class MixtureFigures:
    """The figures of one mixture. Thread-safe, once `add_up` has been called by the thread that reads them."""

    def __init__(self, leaves: Sequence[str], leaf_shares: LeafShares, names: ClientNames):
        """`leaves` are the names of its sources, those of nested mixtures with a path."""
        self.leaves = tuple(leaves)
        self.replies = 0
        self.records: Int64[np.ndarray, " leaves"] = np.zeros(len(leaves), np.int64)
        self.bytes: Int64[np.ndarray, " leaves"] = np.zeros(len(leaves), np.int64)
        self.requested = Requested(leaf_shares, len(leaves))
        self.stages = {stage: Histogram() for stage in STAGES}
        self.made = Histogram()  # planning, gathering and encoding together
        self.readers = Readers(names)
        self._replies = Journal[Reply](self._add_replies)
        self._times = Journal[Times](self._add_times)
        self._sends = Journal[float](self.stages["send"].add)
        self.note_times = self._times.note
        self.note_send = self._sends.note  # seconds from giving a reply to the transport until it wants the next one

    def note_reply(self, reply: Reply) -> None:
        """A reply goes to its reader."""
        self._replies.note(reply)
        if len(reply[0]) > _MANY:
            self._replies.add_up()

    def add_up(self) -> None:
        """Bring the figures up to date."""
        self._replies.add_up()
        self._times.add_up()
        self._sends.add_up()

    def _add_replies(self, replies: list[Reply]) -> None:
        self.replies += len(replies)
        by_row_bytes = dict[int, list[Int[np.ndarray, " rows"]]]()
        rows_of = dict[int, int]()  # by the identity of a schedule without changes, whose hash takes long
        by_reader, schedules = dict[Reader, int](), dict[int, Schedule]()
        for leaf_ids, ranges, row_bytes, schedule, reader in replies:
            rows = len(leaf_ids)
            by_row_bytes.setdefault(row_bytes, []).append(leaf_ids)
            by_reader[reader] = by_reader.get(reader, 0) + rows
            if schedule is None:
                self.requested.add_taken(leaf_ids)
            elif (number := id(schedule)) in rows_of:
                rows_of[number] += rows
            elif schedule.has_one_entry:
                rows_of[number], schedules[number] = rows, schedule
            else:
                self.requested.add(schedule, ranges, rows)
        for row_bytes, ids in by_row_bytes.items():
            counts = np.bincount(np.concatenate(ids), minlength=len(self.leaves))
            self.records += counts
            self.bytes += counts * row_bytes
        for number, rows in rows_of.items():
            self.requested.add(schedules[number], (), rows)
        for reader, rows in by_reader.items():
            self.readers.add_records(reader.client, rows)

    def _add_times(self, times: list[Times]) -> None:
        plan_s, gather_s, encode_s = np.fromiter(chain.from_iterable(times), np.float64).reshape(-1, 3).T
        self.stages["plan"].add(plan_s)
        self.stages["gather"].add(gather_s)
        self.stages["encode"].add(encode_s)
        self.made.add(plan_s + gather_s + encode_s)
