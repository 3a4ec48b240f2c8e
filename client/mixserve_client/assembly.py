"""A batch under way: slices that are fetched in the background and land in their places."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mixserve_client.slices import slices
from mixserve_client.wire.description import MixtureDescription
from mixserve_client.workers import Workers

Batch = dict[str, npt.NDArray[Any]]
Fetch = Callable[[int, int], Batch]


class PendingBatch:
    """The rows [start, start + size), asked for with `fetch(start, size)` as soon as this is made."""

    def __init__(self, fetch: Fetch, workers: Workers, mixture: MixtureDescription, start: int, size: int):
        self._futures: list[Future[Any]] = []
        self._batch: Batch | None = None
        if next(slices(mixture, size)) == (0, size):
            self._futures.append(workers.submit(partial(fetch, start, size)))
            return
        self._batch = {f.name: np.empty((size, *f.shape), f.dtype) for f in mixture.fields}
        for offset, rows in slices(mixture, size):
            self._futures.append(workers.submit(partial(_land, self._batch, fetch, start, offset, rows)))

    def result(self) -> Batch:
        """The whole batch, waited for; raises what the first failed slice raised."""
        try:
            results = [future.result() for future in self._futures]
        except BaseException:
            self.cancel()
            raise
        return results[0] if self._batch is None else self._batch

    def cancel(self) -> None:
        """Drop the slices that nobody has begun to fetch."""
        for future in self._futures:
            future.cancel()


def _land(batch: Batch, fetch: Fetch, start: int, offset: int, rows: int) -> None:
    for name, array in fetch(start + offset, rows).items():
        batch[name][offset : offset + rows] = array
