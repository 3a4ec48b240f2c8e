"""A reply in progress: its rows are planned, and a device gathers them, before a reader waits for it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mixserve.servicer.hosted import ServedSelection
from mixserve.servicer.reply_memory import Memory, Message, ReplyMemory
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.positions import Range
from mixserve_client.wire.batch import encode_slot_reply, frame_batch


class Pending(Protocol):
    """A message that is being made."""

    def result(self) -> Message:
        """Wait for the message. Raises what making it raises."""
        ...


class SlotTarget(NamedTuple):
    """The slot of a client's shared memory that a reply goes into, and the slot's memory."""

    slot: int
    memory: Memory


class PendingReply:
    """A reply with the rows of `ranges`, framed in a slot or in other memory.

    The constructor starts planning and gathering. The message of a reply in a slot names only the slot. Each call of
    `result` makes the reply again.
    """

    # No `_ranges`: scattered positions have one each, and a reply cache holds up to 1,024 of these.

    __slots__ = ("_into", "_row_count", "_rows", "_selection", "_size")

    def __init__(
        self,
        selection: ServedSelection,
        key: KeyWords,
        ranges: Sequence[Range],
        row_count: int,
        size: int,
        into: SlotTarget | ReplyMemory,
    ):
        """`size` is the number of bytes of the framed reply with `row_count` rows. Raises OutOfRange."""
        self._selection = selection
        self._row_count = row_count
        self._size = size
        self._into = into
        self._rows = selection.begin_read(ranges, key)

    def result(self) -> Message:
        message: Message
        if isinstance(self._into, SlotTarget):
            message, memory = encode_slot_reply(self._into.slot, self._size), self._into.memory
        else:
            message, memory = self._into.take(self._size)
        # Framed first, filled after: rows are copied once, from their sources into the object that gRPC sends.
        self._rows.write(frame_batch(memory, self._selection.fingerprint, self._selection.fields, self._row_count))
        return message


class CopiedReply:
    """A shared reply, copied into the slot of one of its readers."""

    __slots__ = ("_shared", "_target")

    def __init__(self, shared: Pending, target: SlotTarget):
        self._shared = shared
        self._target = target

    def result(self) -> Message:
        reply = self._shared.result()
        self._target.memory[: len(reply)] = np.frombuffer(reply, np.uint8)
        return encode_slot_reply(self._target.slot, len(reply))
