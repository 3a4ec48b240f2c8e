"""The batches of a span, over as many streams as it takes."""

from collections.abc import Iterator

from mixserve_client.errors import CorruptReply, MixserveError
from mixserve_client.reading.assembly import Batch, batches_of
from mixserve_client.reading.ranges import PositionList, StridedRange, reply_batches
from mixserve_client.reading.selection import Selection, check_fingerprint
from mixserve_client.rpc.retry import Request, RetryingCaller
from mixserve_client.schema.positions import POSITIONS_PER_REQUEST
from mixserve_client.schema.requests import StreamRequest
from mixserve_client.transport.base import Reply
from mixserve_client.transport.buffers import MemoryPool
from mixserve_client.wire import methods
from mixserve_client.wire.batch import batch_bytes, check_batch, decode_batch, view_batch
from mixserve_client.wire.request import encode_positions_request, encode_stream_request


class BatchStream:
    """Yields the batches of `span` in order, some at a time; iterated once, by one thread, and cancelled by any.

    A stream that ends early, or whose server is lost, is opened again at the first row that has not come.
    """

    def __init__(
        self,
        caller: RetryingCaller,
        selection: Selection,
        span: StridedRange | PositionList,
        memory: MemoryPool,
        deadline: float | None = None,
    ):
        self._selection = selection
        self._span = span
        self._memory = memory
        self._came = 0
        self._reply_rows = _reply_rows(span, selection)
        method = methods.STREAM_BATCHES if isinstance(span, StridedRange) else methods.STREAM_POSITIONS
        self._replies = caller.stream(method, self._next_request, deadline, selection.schedule.definitions)

    def __iter__(self) -> Iterator[list[Batch]]:
        return batches_of(self._rows(), self._span.size, self._selection.fields, self._memory)

    @property
    def is_nearly_done(self) -> bool:
        """Whether the last reply is on its way."""
        left = self._span.size * self._span.count - self._came
        return left <= self._reply_rows

    def cancel(self) -> None:
        """End early."""
        self._replies.cancel()

    def _next_request(self) -> Request | None:
        left = self._span.after(self._came)
        if left is None:
            return None
        selection = self._selection
        if isinstance(left, StridedRange):
            rows = _reply_rows(left, selection)
            first = selection.request(left.start, left.size)
            request = encode_stream_request(StreamRequest(first, left.stride, left.count, rows))
        else:
            left = PositionList(left.positions[:POSITIONS_PER_REQUEST])
            rows = _reply_rows(left, selection)
            request = encode_positions_request(selection.positions_request(left.positions, rows))
        replies = -(-left.size * left.count // rows)
        return Request(request, replies, batch_bytes(selection.fingerprint, selection.fields, rows))

    def _rows(self) -> Iterator[Batch]:
        asked = self._span.size * self._span.count
        for reply in self._replies:
            try:
                batch, rows = decode_reply(reply, self._selection)
                self._came += rows
                if self._came > asked:
                    raise CorruptReply(f"the server sent {self._came} rows where {asked} were asked for")
            except MixserveError:
                self.cancel()  # it may have no end
                raise
            yield batch


def _reply_rows(span: StridedRange | PositionList, selection: Selection) -> int:
    return span.size * min(span.count, reply_batches(span.size * selection.row_bytes))


def decode_reply(reply: Reply, selection: Selection) -> tuple[Batch, int]:
    """The rows in `reply`, which are known to be of `selection`, and how many they are."""
    rows = len(reply) // max(1, selection.row_bytes)  # right unless rows are smaller than what goes with them
    viewed = view_batch(reply, selection.fingerprint, selection.fields, rows) if rows else None
    if viewed is not None:
        return viewed, rows
    fingerprint, batch = decode_batch(reply, len(selection.fields))
    check_fingerprint(selection.mixture, fingerprint)
    rows = check_batch(batch, selection.fields)
    return batch, rows
