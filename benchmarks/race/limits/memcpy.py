"""Copying batches within one process: the speed of the memory.

In its favour: records of a batch are contiguous, and every batch is copied to the same place.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.common.work import load
from benchmarks.race.contestant import Contestant


def contestant() -> Contestant:
    records = np.concatenate(load())

    @contextmanager
    def open_batches(size: int, _key: int) -> Iterator[Iterator[np.ndarray]]:
        yield batches(records, size)

    return Contestant(open_batches, ("numpy",))


def batches(records: np.ndarray, size: int) -> Iterator[np.ndarray]:
    batch = np.zeros_like(records[:size])
    for start in itertools.cycle(range(0, len(records), size)):
        np.copyto(batch, records[start : start + size])
        yield batch
