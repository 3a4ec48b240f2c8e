"""grain's `MapDataset.mix` with its default 16 threads, which prefetch only a given number of batches.

The default is 500, which the threads take longer than a round to fill; with few, a round shows the steady state.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import grain
import numpy as np

from benchmarks.common.work import WEIGHTS, load
from benchmarks.race.contestant import Contestant


def contestant(ahead: str) -> Contestant:
    """`ahead`: how many batches may be ready."""
    sources, read = load(), grain.ReadOptions(prefetch_buffer_size=int(ahead))

    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[np.ndarray]]:
        children = [grain.MapDataset.source(records).seed(key).repeat() for records in sources]
        iterator = iter(grain.MapDataset.mix(children, weights=WEIGHTS).batch(size).to_iter_dataset(read))
        try:
            yield iterator
        finally:
            iterator.close()

    return Contestant(open_batches, ("grain", "numpy"))
