"""Replies of any number of rows -> batches: views if one reply covers a batch, else rows copied into place."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mixserve_client.schema.fields import Batch, Field
from mixserve_client.transport.buffers import MemoryPool

_ALIGNMENT = 64  # bytes, as in replies: JAX's CPU devices use aligned NumPy memory without a copy


def batches_of(
    replies: Iterable[Batch], size: int, fields: tuple[Field, ...], memory: MemoryPool
) -> Iterator[list[Batch]]:
    """Batches of `size` rows from the rows of `replies`: for each reply, the batches that it completes."""
    joiner = _Joiner(size, fields, memory)
    for reply in replies:
        came = [joiner.add(reply)]
        del reply
        yield came.pop()  # this frame must not keep its memory while it waits to go on


class _Joiner:
    """Cuts replies into batches of `size` rows."""

    def __init__(self, size: int, fields: tuple[Field, ...], memory: MemoryPool):
        self._size, self._fields, self._memory = size, fields, memory
        self._partial: Batch | None = None
        self._filled = 0  # rows of it

    def add(self, reply: Batch) -> list[Batch]:
        """The batches that `reply` completes."""
        rows, size = len(next(iter(reply.values()))), self._size
        if rows == size and self._partial is None:
            return [reply]
        complete, at = list[Batch](), 0
        while at < rows:
            if self._partial is None and rows - at >= size:
                complete.append({name: array[at : at + size] for name, array in reply.items()})
                at += size
                continue
            if self._partial is None:
                self._partial, self._filled = _empty_batch(size, self._fields, self._memory), 0
            filled = self._filled
            taken = min(size - filled, rows - at)
            for name, array in reply.items():
                self._partial[name][filled : filled + taken] = array[at : at + taken]
            at, self._filled = at + taken, filled + taken
            if self._filled == size:
                complete.append(self._partial)
                self._partial = None
        return complete


def concatenate(parts: Sequence[Batch]) -> Batch:
    """The rows of all parts, in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def no_rows(fields: tuple[Field, ...]) -> Batch:
    """A batch of zero rows."""
    return {field.name: np.empty((0, *field.shape), field.dtype) for field in fields}


def _empty_batch(size: int, fields: tuple[Field, ...], memory: MemoryPool) -> Batch:
    """Arrays to fill that share one buffer from the pool."""
    starts, total = list[int](), 0
    for field in fields:
        starts.append(total)
        total += -(-size * field.nbytes // _ALIGNMENT) * _ALIGNMENT  # rounded up to the alignment
    root = memory.borrow(total)
    batch: Batch = {}
    for field, start in zip(fields, starts, strict=True):
        data = root[start : start + size * field.nbytes]
        batch[field.name] = data.view(field.dtype).reshape(size, *field.shape)
    return batch
