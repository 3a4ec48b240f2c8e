"""The honest reader, in a process of its own: single calls, two iterators and health checks, side by side.

`python -m benchmarks.common.child benchmarks.attacks.honest ADDRESS` answers `{"seconds": S}` with what it measured.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.attacks.mixtures import TRAIN
from mixserve_client import MixClient

_KEY = 7
_SINGLE_ROWS, _BATCH_ROWS = 4, 32  # 64 KiB and 512 KiB
_PAUSE_S = 0.01  # between two of a kind: a trainer's step, since this is no benchmark of the server
_HEALTH_PAUSE_S = 0.05
_LONGEST_S = 30.0  # what takes longer has failed
# What it measures: single calls, batches of an iterator over gRPC and of one over a bulk channel, and health checks.
KINDS = ("calls", "grpc", "bulk", "health")


@contextmanager
def answering(address: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """A function that reads for some seconds, and returns the p99 of each kind in ms, and the errors."""
    with (
        MixClient.connect(address, shared_memory=False, bulk=False, patience_s=_LONGEST_S) as over_grpc,
        MixClient.connect(address, shared_memory=False, patience_s=_LONGEST_S) as over_bulk,
        grpc.insecure_channel(address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        starts = iter(range(1 << 30))

        def call() -> None:
            over_grpc.get_batch_at(next(starts), _SINGLE_ROWS, key=_KEY, mixture=TRAIN, timeout_s=_LONGEST_S)

        def check() -> None:
            health.Check(health_pb2.HealthCheckRequest(), timeout=_LONGEST_S)

        def read(seconds: float) -> dict[str, Any]:
            until = time.monotonic() + seconds
            streams = [
                client.batches(_BATCH_ROWS, key=_KEY + at, mixture=TRAIN, timeout_s=_LONGEST_S)
                for at, client in enumerate((over_grpc, over_bulk))
            ]
            calls = (call, partial(next, streams[0]), partial(next, streams[1]), check)
            times = {kind: _Times() for kind in KINDS}
            threads = [
                threading.Thread(target=times[kind].measure, args=(one, until, pause_s))
                for kind, one, pause_s in zip(KINDS, calls, (*[_PAUSE_S] * 3, _HEALTH_PAUSE_S), strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for stream in streams:
                stream.close()
            errors = [f"{kind}: {error}" for kind, one in times.items() for error in one.errors]
            return {"p99_ms": {kind: one.percentile(99) for kind, one in times.items()}, "errors": errors}

        yield read


class _Times:
    """How long calls of one kind took."""

    def __init__(self) -> None:
        self.errors = list[str]()
        self._seconds = list[float]()

    def measure(self, call: Callable[[], object], until: float, pause_s: float) -> None:
        """Call until the time `until`. An error counts as a call too: its reader has waited as long."""
        while (began := time.monotonic()) < until:
            try:
                call()
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}"[:200])
                time.sleep(_HEALTH_PAUSE_S)
            self._seconds.append(time.monotonic() - began)
            time.sleep(pause_s)

    def percentile(self, q: float) -> float:
        """In milliseconds."""
        return 1e3 * float(np.percentile(self._seconds, q)) if self._seconds else float("inf")
