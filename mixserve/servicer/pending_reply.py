"""A reply under way: its rows are planned, and a device gathers them, before anybody waits for it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mixserve.servicer.bytes_pool import BytesPool
from mixserve.servicer.hosted import ServedSelection
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.positions import Range
from mixserve_client.wire.batch import encode_slot_reply, frame_batch

Memory = npt.NDArray[np.uint8]


class Pending(Protocol):
    """A message that is being made."""

    def result(self) -> bytes:
        """The message, waited for. Raises what making it raises."""
        ...


class SlotTarget(NamedTuple):
    """A slot that a reply goes into, and its memory."""

    slot: int
    memory: Memory


class PendingReply:
    """The rows of `ranges`, begun when this is made, and framed in a slot or in a bytes object of a pool.

    The message of a reply in a slot says only which slot that is. `result` may be asked for again: it makes the reply
    anew. The ranges are not kept: those of positions in no order may be many.
    """

    __slots__ = ("_into", "_row_count", "_rows", "_selection", "_size")

    def __init__(
        self,
        selection: ServedSelection,
        key: KeyWords,
        ranges: Sequence[Range],
        row_count: int,
        size: int,
        into: SlotTarget | BytesPool,
    ):
        """A reply with `row_count` rows, framed, has `size` bytes. Raises OutOfRange."""
        self._selection = selection
        self._row_count = row_count
        self._size = size
        self._into = into
        self._rows = selection.begin_read(ranges, key)

    def result(self) -> bytes:
        if isinstance(self._into, SlotTarget):
            message, memory = encode_slot_reply(self._into.slot, self._size), self._into.memory
        else:
            message, memory = self._into.take(self._size)
        self._rows.write(frame_batch(memory, self._selection.fingerprint, self._selection.fields, self._row_count))
        return message


class CopiedReply:
    """A reply that several readers share, copied into the slot of one of them."""

    __slots__ = ("_shared", "_target")

    def __init__(self, shared: Pending, target: SlotTarget):
        self._shared = shared
        self._target = target

    def result(self) -> bytes:
        reply = self._shared.result()
        self._target.memory[: len(reply)] = np.frombuffer(reply, np.uint8)
        return encode_slot_reply(self._target.slot, len(reply))
