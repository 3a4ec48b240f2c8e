"""A reply in progress: its rows are planned, and a device gathers them, before a reader waits for it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from mixserve import tracing
from mixserve.metrics.replies import Counted, Times, clock
from mixserve.mixture.gather import SourceReader
from mixserve.servicer.hosted import ServedSelection
from mixserve.servicer.reply_memory import Memory, Message, ReplyMemory
from mixserve.servicer.taken import TakenSelection
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.positions import Range
from mixserve_client.wire.batch import encode_slot_reply, frame_batch
from mixserve_client.wire.checksum import CHECKSUM_BYTES, ReplyTo, seal_reply, write_checksum

if TYPE_CHECKING:
    from mixserve.spans import Spans


class Pending(Counted, Protocol):
    """A message that is being made. What the statistics need is there after `result`."""

    def result(self) -> Message:
        """Wait for the message. Raises what making it raises."""
        ...


class SlotTarget(NamedTuple):
    """The slot of a client's shared memory that a reply goes into, and the slot's memory."""

    slot: int
    memory: Memory


class PendingReply:
    """A reply with the rows of `ranges`, framed in a slot or in other memory.

    The constructor starts planning and gathering. The message of a reply in a slot names only the slot. The message has
    a checksum if `to` is given. Each call of `result` makes the reply again.
    """

    # No `_ranges`: scattered positions have one each, and a reply cache holds up to 1,024 of these.

    __slots__ = ("_into", "_plan_s", "_row_count", "_rows", "_selection", "_size", "_times", "_to", "leaf_ids")

    def __init__(
        self,
        selection: ServedSelection | TakenSelection,
        key: KeyWords,
        ranges: Sequence[Range],
        row_count: int,
        size: int,
        into: SlotTarget | ReplyMemory,
        to: ReplyTo | None = None,
        reader: SourceReader | None = None,
    ):
        """`size` is the number of bytes of the framed reply with `row_count` rows. `reader` reads sources that need
        that (None: the thread that calls `result`). Raises OutOfRange."""
        self._selection = selection
        self._row_count = row_count
        self._size = size
        self._into = into
        self._to = to
        began = clock()
        self._rows = selection.begin_read(ranges, key, reader)
        self._plan_s = clock() - began
        self.leaf_ids: Int[np.ndarray, " rows"] = self._rows.plan.source_ids
        self._times: Times | None = None
        if (spans := _recorded()) is not None:
            spans.note_stage("plan", self._plan_s)

    def result(self) -> Message:
        began = clock()
        message: Message
        if isinstance(self._into, SlotTarget):
            message, memory = encode_slot_reply(self._into.slot, self._size), self._into.memory
        else:
            message, memory = self._into.take(self._size + (CHECKSUM_BYTES if self._to else 0))
        # Framed first, filled after: rows are copied once, from their sources into the object that gRPC sends.
        buffers = frame_batch(memory, self._selection.fingerprint, self._selection.fields, self._row_count)
        framed, spans = clock(), _recorded()
        if spans is None:
            self._rows.write(buffers)
        else:
            spans.note_stage("encode", framed - began)
            with spans.stage("gather"):
                self._rows.write(buffers)
        gathered = clock()
        encode_s = framed - began
        if self._to is not None:
            if isinstance(self._into, SlotTarget):
                message = seal_reply(bytes(message), self._to)
            else:
                write_checksum(memory, self._size, self._to)
            checksum_s = clock() - gathered
            encode_s += checksum_s
            if spans is not None:
                spans.note_stage("checksum", checksum_s)
        self._times = self._plan_s, gathered - framed, encode_s
        return message

    def take_times(self) -> Times | None:
        return self._times


class CopiedReply:
    """A shared reply, copied into the slot of one of its readers."""

    __slots__ = ("_shared", "_target", "_to")

    def __init__(self, shared: Pending, target: SlotTarget, to: ReplyTo | None):
        self._shared = shared
        self._target = target
        self._to = to

    @property
    def leaf_ids(self) -> Int[np.ndarray, " rows"]:
        return self._shared.leaf_ids

    def take_times(self) -> Times | None:
        return self._shared.take_times()

    def result(self) -> Message:
        reply = self._shared.result()
        self._target.memory[: len(reply)] = np.frombuffer(reply, np.uint8)
        message = encode_slot_reply(self._target.slot, len(reply))
        return message if self._to is None else seal_reply(message, self._to)


class SealedReply:
    """A shared reply, copied to get the checksum of one of its readers."""

    __slots__ = ("_memory", "_shared", "_to")

    def __init__(self, shared: Pending, memory: ReplyMemory, to: ReplyTo):
        self._shared = shared
        self._memory = memory
        self._to = to

    @property
    def leaf_ids(self) -> Int[np.ndarray, " rows"]:
        return self._shared.leaf_ids

    def take_times(self) -> Times | None:
        return self._shared.take_times()

    def result(self) -> Message:
        reply = self._shared.result()
        message, memory = self._memory.take(len(reply) + CHECKSUM_BYTES)
        memory[: len(reply)] = np.frombuffer(reply, np.uint8)
        write_checksum(memory, len(reply), self._to)
        return message


def _recorded() -> "Spans | None":
    return None if tracing.spans is None else tracing.spans.if_recorded()
