"""The batches of a span, over as many streams as it takes."""

from collections.abc import Iterator

from mixserve_client.assembly import Batch, batches_of
from mixserve_client.errors import CorruptReply, FingerprintMismatch, MixserveError
from mixserve_client.memory import MemoryPool
from mixserve_client.retry import PatientCaller, Request
from mixserve_client.spans import Scattered, Span, reply_batches
from mixserve_client.transport import Reply
from mixserve_client.view import View
from mixserve_client.wire import methods
from mixserve_client.wire.batch import batch_bytes, check_batch, decode_batch, view_batch
from mixserve_client.wire.description import MixtureDescription
from mixserve_client.wire.request import (
    POSITIONS_PER_REQUEST,
    StreamRequest,
    encode_positions_request,
    encode_stream_request,
)


class BatchStream:
    """Yields the batches of `span` in order, some at a time; iterated once, by one thread, and cancelled by any.

    A stream that ends early, or whose server is lost, is opened again at the first row that has not come.
    """

    def __init__(
        self,
        caller: PatientCaller,
        view: View,
        span: Span | Scattered,
        memory: MemoryPool,
        deadline: float | None = None,
    ):
        self._view = view
        self._span = span
        self._memory = memory
        self._came = 0
        self._reply_rows = _reply_rows(span, view)
        method = methods.STREAM_BATCHES if isinstance(span, Span) else methods.STREAM_POSITIONS
        self._replies = caller.stream(method, self._next_request, deadline, view.schedule.definitions)

    def __iter__(self) -> Iterator[list[Batch]]:
        return batches_of(self._rows(), self._span.size, self._view.fields, self._memory)

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
        view = self._view
        if isinstance(left, Span):
            rows = _reply_rows(left, view)
            first = view.request(left.start, left.size)
            request = encode_stream_request(StreamRequest(first, left.stride, left.count, rows))
        else:
            left = Scattered(left.positions[:POSITIONS_PER_REQUEST])
            rows = _reply_rows(left, view)
            request = encode_positions_request(view.positions_request(left.positions, rows))
        replies = -(-left.size * left.count // rows)
        return Request(request, replies, batch_bytes(view.fingerprint, view.fields, rows))

    def _rows(self) -> Iterator[Batch]:
        asked = self._span.size * self._span.count
        for reply in self._replies:
            try:
                batch, rows = decoded(reply, self._view)
                self._came += rows
                if self._came > asked:
                    raise CorruptReply(f"the server sent {self._came} rows where {asked} were asked for")
            except MixserveError:
                self.cancel()  # it may have no end
                raise
            yield batch


def _reply_rows(span: Span | Scattered, view: View) -> int:
    return span.size * min(span.count, reply_batches(span.size * view.row_bytes))


def decoded(reply: Reply, view: View) -> tuple[Batch, int]:
    """The rows in `reply`, which are known to be of `view`, and how many they are."""
    rows = len(reply) // max(1, view.row_bytes)  # right unless rows are smaller than what goes with them
    viewed = view_batch(reply, view.fingerprint, view.fields, rows) if rows else None
    if viewed is not None:
        return viewed, rows
    fingerprint, batch = decode_batch(reply, len(view.fields))
    check_fingerprint(view.mixture, fingerprint)
    rows = check_batch(batch, view.fields)
    return batch, rows


def check_fingerprint(known: MixtureDescription, fingerprint: str) -> None:
    """Raises FingerprintMismatch where a server's mixture is no longer the one that is known."""
    if fingerprint != known.fingerprint:
        raise FingerprintMismatch(
            f"the mixture {known.name!r} has the fingerprint {fingerprint:.100}, expected {known.fingerprint}: its "
            "batches would be others; connect a new client to use it as it is now"
        )
