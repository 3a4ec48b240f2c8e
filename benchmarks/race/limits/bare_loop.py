"""Planning and gathering in a bare loop of one thread: the limit of a reader in the trainer's process.

In its favour: every batch overwrites the one before.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.common.work import ROW
from benchmarks.race.contestant import Contestant
from benchmarks.race.planned import Planned


def contestant() -> Contestant:
    planned = Planned()

    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[np.ndarray]]:
        yield planned.fill(size, key, itertools.repeat(np.zeros((size, ROW), np.int32)))

    return Contestant(open_batches, ("mixserve", "jax", "numpy"))
