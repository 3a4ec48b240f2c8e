"""A client that requests single small batches, one after another: how long each took within a window."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.common.work import accept
from mixserve_client import MixClient

MODULE = "benchmarks.crowd.calling"


@contextmanager
def answering(address: str) -> Iterator[Callable[..., dict[str, Any]]]:
    with MixClient.connect(address, shared_memory=False) as client:

        def answer(size: int, key: int, begin: float, seconds: float) -> dict[str, Any]:
            taken: list[float] = []
            for start in itertools.count(0, size):
                began = time.monotonic()
                if began >= begin + seconds:
                    break
                accept(client.get_batch_at(start, size, key)["tokens"], size)
                if began >= begin:
                    taken.append(time.monotonic() - began)
            p50, p99, most = np.quantile(taken, (0.5, 0.99, 1.0)).tolist()
            return {"calls": len(taken), "p50_s": p50, "p99_s": p99, "max_s": most}

        yield answer
