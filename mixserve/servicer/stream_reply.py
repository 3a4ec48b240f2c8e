"""A reply of a stream: all of its rows, or the rows before the first one that cannot be made."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mixserve.failed_read import FailedRead, position_at
from mixserve.servicer.pending_reply import Pending
from mixserve.servicer.reply_memory import Message
from mixserve_client.schema.positions import Range


class MadeReply(NamedTuple):
    """A message; if its rows are not all that the reply should have, `lacking` says why."""

    message: Message
    lacking: str = ""


class StreamReply:
    """A reply with the rows of `ranges(rows)`, which `begin(rows)` begins to make; both take a number of rows."""

    __slots__ = ("_begin", "_pending", "_ranges")

    def __init__(self, rows: int, begin: Callable[[int], Pending], ranges: Callable[[int], Sequence[Range]]):
        self._begin = begin
        self._ranges = ranges
        self._pending = begin(rows)

    def result(self) -> MadeReply:
        """Wait for the reply. Raises FailedRead, which names the position, if its first row cannot be made."""
        lacking = ""
        while True:
            try:
                return MadeReply(self._pending.result(), lacking)
            except FailedRead as failed:
                located = failed.at(f"position {position_at(self._ranges(failed.slot + 1), failed.slot)}")
                if failed.slot == 0:
                    raise located from failed.__cause__
                rows, lacking = failed.slot, str(located)
                del located
            # These may fail as well: sources are read one after another, not in the order of their rows.
            self._pending = self._begin(rows)
