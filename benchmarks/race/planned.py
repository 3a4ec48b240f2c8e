"""The rows that mixserve serves, planned and gathered by its own parts in the calling thread, with nothing else of it.

The limits and the peers that do the same work send these rows.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from benchmarks.common.work import ROW
from benchmarks.race.ours import node
from mixserve_client.schema.keys import key_words


class Planned:
    """The mixture of `ours`; safe to use from many threads."""

    def __init__(self) -> None:
        self._mixture = node().mixture

    def fill(self, size: int, key: int, memory: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Write the batches from position 0 on into one array of `memory` after another, each int32 (size, ROW).

        Yields each array when it holds its batch, before it takes the next one.
        """
        words = key_words(key)
        for number, batch in enumerate(memory):
            plan = self._mixture.blocks.plan(words, [(number * size, size)])
            self._mixture.host_gather.into(plan, {"tokens": batch})
            yield batch


def fresh(size: int) -> Iterator[np.ndarray]:
    """New memory for every batch, int32 (size, ROW): for transports that send a batch after they have taken it."""
    return (np.empty((size, ROW), np.int32) for _ in itertools.count())
