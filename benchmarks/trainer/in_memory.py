"""Batches that are in memory before they are requested: the waiting that the loop itself measures."""

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
        yield (records[start : start + size] for start in itertools.cycle(range(0, len(records), size)))

    return Contestant(open_batches, ("numpy",))
