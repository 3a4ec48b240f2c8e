"""Replies of any number of rows -> batches: views where a reply covers them, else rows that land in their places."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixserve_client.schema.fields import Field
from mixserve_client.transport.buffers import MemoryPool

Batch = dict[str, npt.NDArray[Any]]

_ALIGNMENT = 64


def batches_of(
    replies: Iterable[Batch], size: int, fields: tuple[Field, ...], memory: MemoryPool
) -> Iterator[list[Batch]]:
    """The batches of `size` rows that the rows of `replies` make up, as they become whole."""
    landing: Batch | None = None
    landed = 0
    for reply in replies:
        rows = len(next(iter(reply.values())))
        if rows == size and landing is None:
            yield [reply]
            continue
        whole, at = list[Batch](), 0
        while at < rows:
            if landing is None and rows - at >= size:
                whole.append({name: array[at : at + size] for name, array in reply.items()})
                at += size
                continue
            if landing is None:
                landing, landed = _empty_batch(size, fields, memory), 0
            taken = min(size - landed, rows - at)
            for name, array in reply.items():
                landing[name][landed : landed + taken] = array[at : at + taken]
            at, landed = at + taken, landed + taken
            if landed == size:
                whole.append(landing)
                landing = None
        yield whole


def concatenate(parts: Sequence[Batch]) -> Batch:
    """The rows of all parts, in their order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def no_rows(fields: tuple[Field, ...]) -> Batch:
    """A batch of zero rows."""
    return {field.name: np.empty((0, *field.shape), field.dtype) for field in fields}


def _empty_batch(size: int, fields: tuple[Field, ...], memory: MemoryPool) -> Batch:
    """Arrays to fill that share one piece of reused memory."""
    starts, total = list[int](), 0
    for field in fields:
        starts.append(total)
        total += -(-size * field.nbytes // _ALIGNMENT) * _ALIGNMENT
    root = memory.borrow(total)
    batch: Batch = {}
    for field, start in zip(fields, starts, strict=True):
        data = root[start : start + size * field.nbytes]
        batch[field.name] = data.view(field.dtype).reshape(size, *field.shape)
    return batch
