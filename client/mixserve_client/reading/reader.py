"""Reads rows of one selection with a client's resources."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mixserve_client.errors import CorruptReply, FingerprintMismatch, InvalidRequest, MixserveError
from mixserve_client.metrics.reading import IteratorFigures
from mixserve_client.reading.background import BackgroundStream
from mixserve_client.reading.direct import DirectStream
from mixserve_client.reading.ranges import PositionList, StridedRange
from mixserve_client.reading.schedule import Schedule
from mixserve_client.reading.selection import Selection
from mixserve_client.reading.stream import BatchStream, decode_reply
from mixserve_client.rpc.request_sender import RequestSender
from mixserve_client.rpc.resources import ClientResources, Resources
from mixserve_client.schema.checks import check_truth
from mixserve_client.schema.fields import Batch
from mixserve_client.transport.base import Lane, ReadMode
from mixserve_client.wire import methods
from mixserve_client.wire.request import with_rows
from mixserve_client.wire.schedule import decode_schedule
from mixserve_client.wire.sender import with_sender

# A larger batch is read as a stream, since only a stream's replies go through shared memory or in several messages.
_CALL_BYTES = 128 << 10
_DESCRIBE_S = 5.0  # an error must not wait as long as patience lasts

Describe = Callable[[float], object]
AnyStream = BackgroundStream | DirectStream


class Reader:
    """A selection (mixture, key, schedule, content), and the resources to read it. Safe to use from many threads.

    Deadlines are times of `time.monotonic()`.
    """

    def __init__(
        self, resources: Resources, selection: Selection, describe: Describe, iterator: IteratorFigures | None
    ):
        """`describe` asks a server what the mixture is now, and raises FingerprintMismatch if it has changed.

        `iterator` is for whom this reads; None for single calls.
        """
        self._iterator = iterator
        self.selection = selection
        self._resources = resources
        self._describe = describe
        self._call_rows = selection.mixture.limits.size  # requests of more rows are read as streams
        self._end: int | None = None
        self._knows_end = selection.mixture.stop == "never"

    def with_schedule(self, schedule: Schedule) -> "Reader":
        """A reader of the same selection with another schedule."""
        return Reader(self._resources, replace(self.selection, schedule=schedule), self._describe, self._iterator)

    def end(self, deadline: float | None) -> int | None:
        """The first position that does not exist, None if there is no end. Asks a server at most once."""
        if not self._knows_end:
            self._end = self._ask_end(deadline)
            self._knows_end = True  # after `_end`: a thread that finds it set reads `_end` without a lock
        return self._end

    def cut_at_end(self, start: int, size: int, deadline: float | None, *, allow_short: bool) -> int:
        """How many of the rows [start, start + size) to request: with `allow_short` those before the end."""
        end = self.end(deadline) if check_truth("allow_short", allow_short) else None
        return size if end is None or start >= end else min(size, end - start)

    def rows(self, start: int, size: int, deadline: float | None) -> Batch:
        """The rows [start, start + size)."""
        try:
            return self._rows(start, size, deadline)
        except FingerprintMismatch:
            self.say_what_changed()
            raise

    def say_what_changed(self) -> None:
        """After a FingerprintMismatch, raise one that says what has changed, if a server describes it otherwise now.

        The refusal of a request knows two hashes only; descriptions have weights, lengths and fields.
        """
        try:
            self._describe(time.monotonic() + _DESCRIBE_S)
        except FingerprintMismatch:
            raise
        except MixserveError:
            return  # the first error says more than this one, such as that no server answers any more

    def _rows(self, start: int, size: int, deadline: float | None) -> Batch:
        selection = self.selection
        if size > self._call_rows or size * selection.row_bytes > _CALL_BYTES:
            return self._batch(StridedRange(start, size, size, 1), deadline)
        resources = self._resources.here
        sender = self._sender(resources)
        request = with_rows(with_sender(selection.request_without_rows, sender.now()), start, size)
        caller, asking = resources.caller, selection.asking._replace(reader=sender.reader)
        try:
            return caller.ask(methods.GET_BATCH_AT, request, partial(_decode_rows, selection, size), deadline, asking)
        except InvalidRequest:
            # The server may have restarted with a smaller limit. A stream has no limit on its rows; if something else
            # is wrong with the request, the stream is refused as well.
            batch = self._batch(StridedRange(start, size, size, 1), deadline)
            self._call_rows = min(self._call_rows, size - 1)
            return batch

    def batch(self, wanted: StridedRange | PositionList, deadline: float | None) -> Batch:
        """The one batch of `wanted`, read as streams."""
        try:
            return self._batch(wanted, deadline)
        except FingerprintMismatch:
            self.say_what_changed()
            raise

    def _batch(self, wanted: StridedRange | PositionList, deadline: float | None) -> Batch:
        resources = self._resources.here
        stream = BatchStream(
            resources.caller, self.selection, self._sender(resources), wanted, resources.buffers, deadline
        )
        (batch,) = (batch for batches in stream for batch in batches)
        return batch

    def start(
        self, wanted: StridedRange | PositionList, after: AnyStream | None, lane: Lane, most_wait_s: float | None
    ) -> AnyStream:
        """The batches of `wanted`, requested after those of `after`, the lane's stream before it.

        `most_wait_s` is how long a trainer waits for a batch at most. A `DirectStream` has to be begun.
        """
        resources = self._resources.here
        stream = BatchStream(
            resources.caller, self.selection, self._sender(resources), wanted, resources.buffers, None, most_wait_s
        )
        mode = stream.read_mode
        if mode == ReadMode.BACKGROUND:
            return BackgroundStream(stream, resources.threads, after if isinstance(after, BackgroundStream) else None)
        before = after if isinstance(after, DirectStream) else None
        return DirectStream(stream, lane, before)

    def submit(self, task: Callable[[], None]) -> None:
        """Run `task`, which must not raise, in one of the client's threads. Raises Unavailable after `close`."""
        self._resources.here.threads.start(task)

    def note_batch(self, rows: int) -> None:
        """A single call returns a batch of so many rows."""
        selection = self.selection
        self._resources.here.reading.note_call(selection.mixture.name, rows, selection.row_bytes)

    def _sender(self, resources: ClientResources) -> RequestSender:
        # Without the resources: a thread that reads must not keep the client alive.
        return resources.sender if self._iterator is None else RequestSender(resources.sender.client, self._iterator)

    def _ask_end(self, deadline: float | None) -> int | None:
        schedule = self.selection.schedule
        if not schedule.entries:
            return schedule.mixture.end
        # Only the last entry: a server that does not know the entries before it raises UnknownSchedule, and the caller
        # then sends all of them.
        (definition,) = schedule.definitions(whole=False)
        caller = self._resources.here.caller
        return caller.ask(methods.DEFINE_SCHEDULE, definition, decode_schedule, deadline, self.selection.asking).end


def _decode_rows(selection: Selection, size: int, reply: bytes) -> Batch:
    batch, rows = decode_reply(reply, selection)
    if rows != size:
        raise CorruptReply(f"the server sent {rows} rows, but {size} were requested")
    return batch
