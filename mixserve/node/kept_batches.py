"""The last few eager batches of a node, by what was asked for: up to eight of them, and 256 MiB."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mixserve.node.batches import Batch
from mixserve_client.forks import renew_in_forks

_KEPT, _KEPT_BYTES = 8, 256 << 20


class KeptBatches:
    """Safe to use from many threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, Batch] = OrderedDict()
        self._lock = threading.Lock()
        renew_in_forks(self, KeptBatches._renew)

    def get(self, asked: tuple[int, ...], make: Callable[[], Batch]) -> Batch:
        """The batch that was made for `asked` a few batches ago, else what `make` gives."""
        place = (asked, jax.dtypes.canonicalize_dtype(np.int64))  # dtypes depend on x64
        with self._lock:
            batch = self._kept.get(place)
        if batch is None or any(array.is_deleted() for array in batch.values()):  # who has it may have donated it
            with jax.ensure_compile_time_eval():  # inside a program, a tracer would be kept
                batch = make()
        with self._lock:
            self._kept[place] = batch
            self._kept.move_to_end(place)
            while len(self._kept) > _KEPT or sum(map(_bytes, self._kept.values())) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return batch

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()

    def _renew(self) -> None:
        self._kept, self._lock = OrderedDict(), threading.Lock()

    def __reduce__(self) -> Any:
        return KeptBatches, ()


def _bytes(batch: Batch) -> int:
    return sum(array.nbytes for array in batch.values())
