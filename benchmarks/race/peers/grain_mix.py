"""grain's `MapDataset.mix` in the trainer's process, or in its worker processes.

As its documentation shows: default `ReadOptions`, 16 threads that prefetch up to 500 batches; large batches take many
seconds to begin and are left out.

Tuned: no threads besides the iterator's own, `ReadOptions(0, 0)`.

In favour of both: records come in their order, unshuffled (shuffling cost nearly half); no service in between.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import grain
import numpy as np
from absl import flags

from benchmarks.common.work import WEIGHTS, load
from benchmarks.race.contestant import Contestant

_BUFFERED = 2  # batches per worker that are ready for the trainer; the worker's own prefetched ones come on top


def contestant(form: str, workers: str = "0") -> Contestant:
    """`form`: textbook or tuned."""
    flags.FLAGS(["race"])  # grain's workers read absl's flags, which must have been parsed
    count, sources = int(workers), load()
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0) if form == "tuned" else grain.ReadOptions()

    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[np.ndarray]]:
        children = [grain.MapDataset.source(records).seed(key).repeat() for records in sources]
        dataset = grain.MapDataset.mix(children, weights=WEIGHTS).batch(size).to_iter_dataset(read)
        if count:
            options = grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=_BUFFERED)
            dataset = dataset.mp_prefetch(options)
        iterator = iter(dataset)
        try:
            yield iterator
        finally:
            iterator.close()

    ahead = max(1, count) * read.prefetch_buffer_size + count * (_BUFFERED + 1)
    return Contestant(open_batches, ("grain", "numpy"), lambda _: ahead)
