"""What the replies of one mixture held, and how long each step of making them took."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from mixserve.metrics.clients import ClientNames, Reader, Readers
from mixserve.metrics.histogram import Histogram
from mixserve.metrics.journal import Journal
from mixserve.metrics.requested import LeafShares, Requested
from mixserve.mixture.schedule import Schedule
from mixserve_client.schema.positions import Range

clock = time.perf_counter

STAGES = ("plan", "gather", "encode", "send")
_MANY = 4096  # rows of a reply that are counted at once: notes must not keep much memory


class Times(NamedTuple):
    """Seconds of the steps of making a reply."""

    plan_s: float
    gather_s: float
    encode_s: float


class Reply(NamedTuple):
    """A reply that a reader gets: the leaf of each row, the positions, and the bytes of a row."""

    leaf_ids: Int[np.ndarray, " rows"]
    ranges: Sequence[Range]
    row_bytes: int
    schedule: Schedule
    reader: Reader | None


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
        if len(reply.leaf_ids) > _MANY:
            self._replies.add_up()

    def add_up(self) -> None:
        """Bring the figures up to date."""
        self._replies.add_up()
        self._times.add_up()
        self._sends.add_up()

    def _add_replies(self, replies: list[Reply]) -> None:
        self.replies += len(replies)
        by_row_bytes = dict[int, list[Int[np.ndarray, " rows"]]]()
        by_client = dict[str, int]()
        for reply in replies:
            rows = len(reply.leaf_ids)
            by_row_bytes.setdefault(reply.row_bytes, []).append(reply.leaf_ids)
            self.requested.add(reply.schedule, reply.ranges, rows)
            if reply.reader is not None:
                by_client[reply.reader.client] = by_client.get(reply.reader.client, 0) + rows
        for row_bytes, leaf_ids in by_row_bytes.items():
            counts = np.bincount(np.concatenate(leaf_ids), minlength=len(self.leaves))
            self.records += counts
            self.bytes += counts * row_bytes
        for client, rows in by_client.items():
            self.readers.add_records(client, rows)

    def _add_times(self, times: list[Times]) -> None:
        columns = np.array(times).T
        for stage, seconds in zip(STAGES, columns, strict=False):  # "send" comes later
            self.stages[stage].add(seconds)
        self.made.add(columns.sum(axis=0))
