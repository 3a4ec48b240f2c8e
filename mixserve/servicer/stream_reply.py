"""A reply of a stream: all of its rows, or the rows before the first one that cannot be made."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mixserve import tracing
from mixserve.failed_read import FailedRead
from mixserve.servicer.pending_reply import Pending
from mixserve.servicer.reply_memory import Message
from mixserve_client.schema.positions import Range

if TYPE_CHECKING:
    from mixserve.spans import ReplySpan


class MadeReply(NamedTuple):
    """A message with the rows of `ranges`, and what made it; `lacking` says why it does not have all of its rows.

    `span` has the time until it is sent, if the call is traced.
    """

    message: Message
    pending: Pending
    ranges: Sequence[Range]
    lacking: str = ""
    span: "ReplySpan | None" = None


class StreamReply:
    """A reply with `rows` rows, at the ranges `ranges(rows)`, which `begin(ranges)` begins to make.

    `locate(failed, ranges)` is the error for a row that cannot be made.
    """

    __slots__ = ("_begin", "_here", "_locate", "_pending", "_ranges", "_span")

    def __init__(
        self,
        rows: int,
        begin: Callable[[Sequence[Range]], Pending],
        ranges: Callable[[int], Sequence[Range]],
        locate: Callable[[FailedRead, Sequence[Range]], FailedRead],
    ):
        self._begin, self._locate = begin, locate
        self._ranges = ranges
        self._here = ranges(rows)
        self._span = None if tracing.spans is None else tracing.spans.reply(self._here[0][0], rows)
        self._pending = begin(self._here) if self._span is None else self._span.run(begin, self._here)

    def result(self) -> MadeReply:
        """Wait for the reply. Raises FailedRead, which names the row, if its first one cannot be made."""
        return self._result() if self._span is None else self._span.run(self._result)

    def _result(self) -> MadeReply:
        lacking = ""
        while True:
            try:
                return MadeReply(self._pending.result(), self._pending, self._here, lacking, self._span)
            except FailedRead as failed:
                located = self._locate(failed, self._here)
                try:
                    if failed.slot == 0:
                        raise located from failed.__cause__
                    rows, lacking = failed.slot, str(located)
                finally:
                    del located  # as in error_boundary: its traceback leads to this frame
            # These may fail as well: sources are read one after another, not in the order of their rows.
            self._here = self._ranges(rows)
            self._pending = self._begin(self._here)
