"""How fast a stream delivers to a loop that does nothing with it, alone, or beside steps that keep a core busy."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.common.work import ROW_BYTES, accept
from benchmarks.race.contestant import Contestant, warm_up
from benchmarks.trainer.step import Step


def megabytes_per_second(
    contestant: Contestant, step: Step, batch: np.ndarray, products: int, seconds: float, beside: bool
) -> float:
    """MB/s of array data in batches as large as `batch`; with `beside`, another thread takes steps without a pause."""
    size, count = len(batch), 0
    with contestant.open(size, 0) as batches, _stepping(step, batch, products if beside else None):
        warm_up(batches, size, contestant.ahead(size))
        began = now = time.perf_counter()
        while now - began < seconds:
            accept(next(batches), size)
            count, now = count + 1, time.perf_counter()
    return count * size * ROW_BYTES / 1e6 / (now - began)


@contextmanager
def _stepping(step: Step, batch: np.ndarray, products: int | None) -> Iterator[None]:
    done = threading.Event()

    def steps() -> None:
        while products is not None and not done.is_set():
            step(batch, products)

    stepping = threading.Thread(target=steps)
    stepping.start()
    try:
        yield
    finally:
        done.set()
        stepping.join()
