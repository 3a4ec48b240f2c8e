"""Positions of a mixture -> encoded batches, in messages or in the client's shared memory."""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from mixserve.mixture.gather import SourceReader
from mixserve.reply_room import reserve_room
from mixserve.servicer.hosted import ServedSelection, plan_limit
from mixserve.servicer.pending_reply import CopiedReply, Pending, PendingReply, SealedReply, SlotTarget
from mixserve.servicer.reply_cache import ReplyCache
from mixserve.servicer.reply_memory import Memory, ReplyMemory
from mixserve.servicer.taken import TakenSelection
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.positions import Range
from mixserve_client.schema.requests import PositionsRequest, RecordsRequest, StreamRequest
from mixserve_client.wire.batch import batch_bytes
from mixserve_client.wire.checksum import ReplyTo

# In epoch mode a scattered position plans its whole block, so positions are limited as well as draws.
_PLANNED_POSITIONS = 1 << 17

# Smaller replies cost less to make than to look up, and larger ones would soon fill the cache.
_LEAST_CACHED_BYTES, _MOST_CACHED_BYTES = 128 << 10, 4 << 20

# More ranges than this are hashed: as a cache key they could take as much memory as the reply.
_FEW_RANGES = 64


AnySelection = ServedSelection | TakenSelection
StreamedRequest = StreamRequest | PositionsRequest | RecordsRequest


class Slots(Protocol):
    """Memory that clients share with this process."""

    def path_for(self, peer: str) -> str:
        """The path of the socket over which this gRPC peer hands in memory; empty if it cannot."""
        ...

    def memory(self, slot: int) -> Memory | None:
        """The writable memory of a slot; None if the slot is unknown, or its client is gone."""
        ...


class NoSlots:
    """No memory is shared."""

    def path_for(self, peer: str) -> str:  # noqa: ARG002
        return ""

    def memory(self, slot: int) -> Memory | None:  # noqa: ARG002
        return None


class Replies:
    """Makes encoded batches."""

    def __init__(self, slots: Slots):
        self._slots = slots
        self._cache = ReplyCache()

    @property
    def cache_hits(self) -> tuple[int, int]:
        """How many replies were in the cache, and how many were not and could have been."""
        return self._cache.hits, self._cache.misses

    def cut(
        self, selection: AnySelection, wanted: StreamedRequest, memory: ReplyMemory
    ) -> Iterator[tuple[int, int, SlotTarget | None]]:
        """(first row, rows, target) of each reply to `wanted`. Rows without a slot are cut as `memory` wants them."""
        slots = iter(wanted.slots)
        for at, rows in _split_plans(selection, wanted):
            # Slots are matched to replies by order. A reply without one (slot 0, too small, its client gone) does not
            # end the stream: the client counts rows, so any cut is right.
            target = self.slot_target(selection, rows, next(slots, 0))
            if target is not None:
                yield at, rows, target
                continue
            most = max(1, memory.piece_bytes // max(1, selection.row_bytes))
            pieces = -(-rows // most)  # of nearly equal size
            for piece in range(pieces):
                first, last = piece * rows // pieces, (piece + 1) * rows // pieces
                yield at + first, last - first, None

    def drop_old(self) -> None:
        """Drop what was kept for readers who did not come."""
        self._cache.drop_old()

    def slot_target(self, selection: AnySelection, rows: int, slot: int) -> SlotTarget | None:
        """The slot for a reply of `rows` rows; None if the slot is unknown or too small."""
        memory = self._slots.memory(slot) if slot else None
        if memory is None or len(memory) < batch_bytes(selection.fingerprint, selection.fields, rows):
            return None
        return SlotTarget(slot, memory)

    def begin(
        self,
        selection: AnySelection,
        key: KeyWords,
        ranges: Sequence[Range],
        target: SlotTarget | None,
        memory: ReplyMemory,
        to: ReplyTo | None = None,
        reader: SourceReader | None = None,
    ) -> Pending:
        """Begin the reply with the rows of `ranges`, in the slot `target` if there is one, or else in `memory`; with a
        checksum if `to` is given.

        `reader` reads sources that need that (None: the thread that waits for the reply).

        Raises OutOfRange, and Overloaded before anything is planned if there is no room for the reply.
        """
        rows = sum(size for _, size in ranges)
        size = batch_bytes(selection.fingerprint, selection.fields, rows)
        # Not cached: gathering arrays is copying them, and a copy of a cached reply into the slot would cost the same.
        if target is None:
            reserve_room(size)
        elif selection.is_array_backed:
            return PendingReply(selection, key, ranges, rows, size, target, to, reader)
        # Other sources may be slow: their replies are shared at any size. A checksum is that of one reader, and goes
        # into a copy.
        if selection.is_array_backed and (to is not None or not _LEAST_CACHED_BYTES <= size <= _MOST_CACHED_BYTES):
            return PendingReply(selection, key, ranges, rows, size, memory, to, reader)
        begin = partial(PendingReply, selection, key, ranges, rows, size, memory, None, reader)
        # By memory too: gRPC sends bytes objects only.
        cached = self._cache.get(selection.identity(key), (_identity(ranges), memory), size, begin)
        if target is not None:
            return CopiedReply(cached, target, to)
        return cached if to is None else SealedReply(cached, memory, to)


def _split_plans(selection: AnySelection, wanted: StreamedRequest) -> Iterator[tuple[int, int]]:
    """(first row, rows) of the parts of `wanted`, of `reply_rows` rows at most.

    Each part is small enough to plan that other readers do not wait for the plans of millions of positions, and its
    own reader does not wait for later batches.
    """
    if isinstance(selection, TakenSelection) or isinstance(wanted, RecordsRequest):  # nothing is planned
        yield from _parts(0, wanted.rows, wanted.reply_rows)
        return
    blocks = selection.blocks
    most = min(_PLANNED_POSITIONS, plan_limit(blocks.planner))
    if isinstance(wanted, StreamRequest):
        size = wanted.first.size
        batches = max(1, most // blocks.positions_for(size, wanted.stride))
        # Each reply is cut by itself, so that readers of the same rows get the same cuts wherever their streams begin,
        # and share replies.
        for begin, rows in _parts(0, wanted.rows, wanted.reply_rows):
            yield from _parts(begin, rows, batches * size if size <= most else most)
        return
    begin = 0
    for rows in blocks.planned_at_once(wanted.positions, most):
        yield from _parts(begin, rows, wanted.reply_rows)
        begin += rows


def _parts(begin: int, rows: int, most: int) -> Iterator[tuple[int, int]]:
    for at in range(begin, begin + rows, most):
        yield at, min(most, begin + rows - at)


def _identity(ranges: Sequence[Range]) -> Hashable:
    """A cache key of `ranges`: equal keys mean equal ranges."""
    if len(ranges) <= _FEW_RANGES:
        return tuple(ranges)
    return hashlib.sha256(np.array(ranges, np.int64).tobytes()).digest()
