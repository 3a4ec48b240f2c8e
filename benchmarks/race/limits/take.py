"""`np.take` of records whose numbers are known already: the limit of gathering in one thread.

In its favour: all records lie in one array, nothing is planned, and every batch overwrites the one before.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.common.work import RECORDS, ROW, WEIGHTS, load
from benchmarks.race.contestant import Contestant

_DRAWN = 1 << 16  # records that are drawn before the round, then taken over and over: far more than caches hold


def contestant() -> Contestant:
    records = np.concatenate(load())

    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[np.ndarray]]:
        yield batches(records, drawn(size, key))

    return Contestant(open_batches, ("numpy",))


def drawn(size: int, key: int) -> np.ndarray:
    """The numbers of the mixture's records for some batches, int64 of shape (batches, size)."""
    rng = np.random.default_rng(key)
    shape = (_DRAWN // size, size)
    return rng.choice(len(WEIGHTS), shape, p=WEIGHTS) * RECORDS + rng.integers(RECORDS, size=shape)


def batches(records: np.ndarray, numbers: np.ndarray) -> Iterator[np.ndarray]:
    batch = np.zeros((numbers.shape[1], ROW), np.int32)
    for rows in itertools.cycle(numbers):
        np.take(records, rows, axis=0, out=batch, mode="clip")  # the default mode would copy twice with `out`
        yield batch
