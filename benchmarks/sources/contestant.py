"""One way to read one kind of data, in a process of its own: opens it, and reads batches when it is told to.

`python -m benchmarks.common.child benchmarks.sources.contestant READER FOLDER`, where READER is the name of a function
of a module of `benchmarks.sources.readers`.
"""

import hashlib
import importlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.usage import forget_peaks, peak_bytes
from benchmarks.sources.work import LENGTH, RECORDS

BATCH = 256

Read = Callable[[np.ndarray], np.ndarray]


@contextmanager
def answering(reader: str, folder: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """Answers the number of a round and `seconds` with how many records it read in about so many seconds.

    All contestants read the same records, in batches of 256 at random, in the same order in a round.
    """
    module, _, name = reader.partition(":")
    began = time.perf_counter()
    read: Read = getattr(importlib.import_module(f"benchmarks.sources.readers.{module}"), name)(Path(folder))
    opened = time.perf_counter() - began

    def answer(number: int, seconds: float) -> dict[str, Any]:
        batches = np.random.default_rng(number).integers(0, RECORDS, (512, BATCH))
        digest = digest_of(read(batches[0]))
        forget_peaks([os.getpid()])
        count, cpu, began = 0, time.process_time(), time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            read(batches[1 + count % 511])
            count += 1
        used, peak = time.process_time() - cpu, peak_bytes([os.getpid()])
        return {
            "records": count * BATCH,
            "seconds": taken,
            "cpu": used,
            "peak": peak,
            "digest": digest,
            "opened": opened,
        }

    yield answer


def digest_of(batch: np.ndarray) -> str:
    """A digest of the first 512 ids of every record of a batch."""
    return hashlib.sha256(np.ascontiguousarray(batch[:, :LENGTH], np.int32).tobytes()).hexdigest()[:16]
