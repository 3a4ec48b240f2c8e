"""A cache of a node's most recently used eager batches: up to 8 of them, and 256 MiB."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mixserve.node.batches import Batch
from mixserve_client.forks import renew_in_forks

_MOST_BATCHES, _MOST_BYTES = 8, 256 << 20


class BatchCache:
    """Safe to use from many threads."""

    def __init__(self) -> None:
        self._batches: OrderedDict[Any, Batch] = OrderedDict()
        self._lock = threading.Lock()
        renew_in_forks(self, BatchCache._renew)

    def get(self, asked: tuple[int, ...], make: Callable[[], Batch]) -> Batch:
        """The cached batch for the arguments `asked`; if there is none, the result of `make`, which is then cached."""
        name = (asked, jax.dtypes.canonicalize_dtype(np.int64))  # with x64 the same arguments give other dtypes
        with self._lock:
            batch = self._batches.get(name)
        if batch is None or any(array.is_deleted() for array in batch.values()):  # a caller may have donated it
            # Without the lock, since it may take long. While a program is traced, `make` would return tracers, which
            # must not outlive it.
            with jax.ensure_compile_time_eval():
                batch = make()
        with self._lock:
            self._batches[name] = batch
            self._batches.move_to_end(name)
            while len(self._batches) > _MOST_BATCHES or sum(map(_bytes, self._batches.values())) > _MOST_BYTES:
                self._batches.popitem(last=False)
        return batch

    def clear(self) -> None:
        """Evict all batches."""
        with self._lock:
            self._batches.clear()

    def _renew(self) -> None:
        # In a forked process the lock may be held by a thread that does not exist there.
        self._batches, self._lock = OrderedDict(), threading.Lock()

    def __reduce__(self) -> Any:  # a pickled node has an empty cache
        return BatchCache, ()


def _bytes(batch: Batch) -> int:
    return sum(array.nbytes for array in batch.values())
