"""A leaf of a mixture -> its records, read in batches as the server reads them: all, or a sample at random."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat

import numpy as np

from mixserve.failed_read import FailedRead
from mixserve.mixture.leaves import Plan
from mixserve.mixture.mixture import Mixture
from mixserve_client.schema.fields import Field

_BATCH = 256
_MOST_BATCHES = 64
_BYTES_AT_ONCE = 16 << 20
_ADDED = ("_segment_ids", "_positions")  # the fields of `segments` and `pack`

Batch = Mapping[str, np.ndarray]
Bounds = dict[str, tuple[int, int]]


def widen(known: Bounds, found: Bounds) -> None:
    """Take smaller and larger numbers into account."""
    for name, (low, high) in found.items():
        least, most = known.get(name, (low, high))
        known[name] = min(low, least), max(high, most)


class LeafReader:
    """Reads records of one leaf as the server does for a batch."""

    def __init__(self, mixture: Mixture, number: int):
        self._mixture, self._number = mixture, number
        self._length = len(mixture.leaves[number])
        self.id_fields = id_fields(mixture.fields)
        row_bytes = sum(field.nbytes for field in mixture.fields)
        self._most = max(1, _BYTES_AT_ONCE // max(1, row_bytes))

    def read_sample(self, seconds: float, widen: Callable[[Bounds], None]) -> tuple[float, dict[str, np.ndarray]]:
        """Records per second in batches at random, and the ids of one batch.

        `widen` is called with the smallest and the largest ids of every batch. Raises ValueError, which names the
        record, if one cannot be read.
        """
        until, rng = time.perf_counter() + seconds, np.random.default_rng(0)
        sample: dict[str, np.ndarray] = {}
        spent, count, least = 0.0, 0, 0
        # Small ones first: a record may take seconds. Only the largest ones count, since a batch has a cost of its own.
        for size in chain((1, 4, 16, 64), repeat(_BATCH, _MOST_BATCHES)):
            size = min(size, self._most)
            ids = rng.integers(0, self._length, size)
            begin = time.perf_counter()
            batch = self._read(ids)
            now = time.perf_counter()
            if size > least:
                spent, count, least = 0.0, 0, size
                sample = {name: batch[name] for name in self.id_fields}
            spent, count = spent + now - begin, count + size
            widen(bounds(batch, self.id_fields))
            if now + 2 * (now - begin) > until:
                break
        return count / max(spent, 1e-9), sample

    def read_all(self) -> Iterator[tuple[int, Bounds]]:
        """Read all records; per batch their number, and the smallest and largest ids.

        Raises ValueError, which names the first record that cannot be read.
        """
        for first, stop in self.steps():
            yield stop - first, bounds(self._read(np.arange(first, stop)), self.id_fields)

    def steps(self) -> Iterator[tuple[int, int]]:
        """First record, and the one after the last, of batches of all records."""
        step = min(self._most, 4 * _BATCH)
        for first in range(0, self._length, step):
            yield first, min(first + step, self._length)

    def plan(self, record_ids: np.ndarray) -> tuple[Plan, dict[str, np.ndarray]]:
        """The plan of these records, and buffers for them."""
        size = len(record_ids)
        buffers = {field.name: np.empty((size, *field.shape), field.dtype) for field in self._mixture.fields}
        numbers = np.full(size, self._number, np.int32)
        return Plan(numbers, record_ids.astype(np.int64), np.zeros((size, 2), np.uint32)), buffers

    def _read(self, record_ids: np.ndarray) -> dict[str, np.ndarray]:
        plan, buffers = self.plan(record_ids)
        try:
            self._mixture.host_gather.into(plan, buffers)
        except FailedRead as error:
            raise ValueError(str(error)) from error
        return buffers


def id_fields(fields: Sequence[Field]) -> list[str]:
    """The fields that may have ids: rows of integers; if there are none, single integers."""
    names = {field.name for field in fields}
    added = {name + end for name in names for end in _ADDED}
    integers = [field for field in fields if field.dtype.kind in "iu" and len(field.shape) < 2]
    rows = [field.name for field in integers if field.shape and field.name not in added]
    return rows or [field.name for field in integers if field.name not in added]


def bounds(batch: Batch, names: Sequence[str]) -> Bounds:
    """The smallest and the largest number in these fields, if they have any."""
    found = {name: batch[name] for name in names if batch[name].size}
    return {name: (int(ids.min()), int(ids.max())) for name, ids in found.items()}
