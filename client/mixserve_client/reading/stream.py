"""The batches of a range or list of positions, read over as many streams as it takes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mixserve_client.errors import CorruptReply
from mixserve_client.reading.assembly import batches_of
from mixserve_client.reading.ranges import PositionList, StridedRange, reply_batches
from mixserve_client.reading.record_selection import RecordSelection
from mixserve_client.reading.selection import Selection
from mixserve_client.rpc.asking import Request
from mixserve_client.rpc.request_sender import RequestSender
from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.schema.fields import Batch
from mixserve_client.schema.positions import POSITIONS_PER_REQUEST
from mixserve_client.transport.base import Lane, ReadMode, Reply
from mixserve_client.transport.buffers import MemoryPool
from mixserve_client.wire import methods
from mixserve_client.wire.batch import batch_bytes, check_batch, decode_batch, view_batch
from mixserve_client.wire.request import with_batches
from mixserve_client.wire.sender import with_sender

if TYPE_CHECKING:
    from mixserve_client.spans import RequestSpan


# What numbers of rows refer to: positions of a mixture, or records of a source.
AnySelection = Selection | RecordSelection


class BatchStream:
    """Yields the batches of `wanted` in order, some at a time.

    One thread at a time iterates over it, once; any may cancel it.

    If a stream ends early, or its server is lost, the client opens another one at the first missing row.
    """

    def __init__(
        self,
        caller: RetryingCaller,
        selection: AnySelection,
        sender: RequestSender,
        wanted: StridedRange | PositionList,
        memory: MemoryPool,
        deadline: float | None = None,
        most_wait_s: float | None = None,
    ):
        """Only a `Selection` has a StridedRange. `most_wait_s` is how long its reader waits for a batch at most."""
        self._selection = selection
        self._memory = memory
        self._rest = rest = _Rest(selection, sender, wanted)
        method = methods.STREAM_BATCHES if isinstance(wanted, StridedRange) else selection.method_of_lists
        asking = selection.asking._replace(reader=sender.reader)
        self._replies = caller.stream(
            method, rest.next_request, rest.receive, deadline, asking, most_wait_s, sender.waits
        )

    def __iter__(self) -> Iterator[list[Batch]]:
        return batches_of(iter(self._replies), self._rest.wanted.size, self._selection.fields, self._memory)

    @property
    def read_mode(self) -> ReadMode:
        """As `RetryingReplies.read_mode`."""
        return self._replies.read_mode

    @property
    def request(self) -> "RequestSpan | None":
        """The span of the requests; None before the first one, and without tracing."""
        return None if self._replies.trace is None else self._replies.trace.request

    def begin(self, lane: Lane | None = None) -> None:
        """As `RetryingReplies.begin`."""
        self._replies.begin(lane)

    def wait_until(self, deadline: float | None) -> None:
        """From now on, waiting for a reply ends at that time of `time.monotonic()`."""
        self._replies.deadline = deadline

    @property
    def is_nearly_done(self) -> bool:
        """Whether at most one reply is missing."""
        return self._rest.rows <= self._rest.reply_rows

    def cancel(self) -> None:
        """End the stream early."""
        self._replies.cancel()


class _Rest:
    """What is left of `wanted`: an object of its own, so that what requests it need not refer to the stream."""

    def __init__(self, selection: AnySelection, sender: RequestSender, wanted: StridedRange | PositionList):
        self.wanted = wanted
        self.reply_rows = _reply_rows(wanted, selection)
        self._selection = selection
        self._sender = sender
        self._received = 0  # rows

    @property
    def rows(self) -> int:
        """How many rows are left."""
        return self.wanted.size * self.wanted.count - self._received

    def receive(self, reply: Reply) -> Batch:
        """The rows in `reply`, which are left no longer. Raises CorruptReply if these are more than were left."""
        batch, rows = decode_reply(reply, self._selection)
        if rows > self.rows:
            requested = self.wanted.size * self.wanted.count
            raise CorruptReply(f"the server sent {self._received + rows} rows, but {requested} were requested")
        self._received += rows
        return batch

    def next_request(self) -> Request | None:
        """The request for what is left; None if nothing is."""
        left = self.wanted.after(self._received)
        if left is None:
            return None
        selection, sender = self._selection, self._sender.now()
        if isinstance(left, StridedRange):
            assert isinstance(selection, Selection)
            rows = _reply_rows(left, selection)
            unfinished = with_sender(selection.request_without_rows, sender)
            request = with_batches(unfinished, left.start, left.size, left.stride, left.count, rows)
        else:
            left = PositionList(left.positions[:POSITIONS_PER_REQUEST])
            rows = _reply_rows(left, selection)
            request = selection.list_request(left.positions, rows, sender)
        replies = -(-left.size * left.count // rows)
        return Request(request, replies, batch_bytes(selection.fingerprint, selection.fields, rows))


def _reply_rows(wanted: StridedRange | PositionList, selection: AnySelection) -> int:
    return wanted.size * min(wanted.count, reply_batches(wanted.size * selection.row_bytes))


def decode_reply(reply: Reply, selection: AnySelection) -> tuple[Batch, int]:
    """The rows in `reply`, and how many there are. Raises CorruptReply, and FingerprintMismatch if they are of another
    mixture or source."""
    # The number is a guess, right unless a reply's framing is as large as a row. If the reply is not exactly what our
    # encoder writes for that number, `view_batch` returns None, and the full decoder reads it or says what is wrong.
    rows = len(reply) // max(1, selection.row_bytes)
    batch = view_batch(reply, selection.fingerprint, selection.fields, rows) if rows else None
    if batch is not None:
        return batch, rows
    fingerprint, batch = decode_batch(reply, len(selection.fields))
    selection.check_fingerprint(fingerprint)
    rows = check_batch(batch, selection.fields)
    return batch, rows
