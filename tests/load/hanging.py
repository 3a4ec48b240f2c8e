"""A server with a mixture that hangs when told to, and what its clients do."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer
from mixserve_client import BatchIterator, MixClient
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_batch_request
from tests.conftest import ROUTES
from tests.hanging_source import HangingSource
from tests.processes import ONE_SIZE

DEADLINE_S = 30
SIZE = 8


class Hanging(NamedTuple):
    """A server of two mixtures, `hangs` and `train`; `switch` exists while the source of the first hangs."""

    server: MixServer
    source: HangingSource
    switch: Path

    def connect(self, route: str = "grpc", **options: Any) -> MixClient:
        return MixClient.connect(self.server.address, **{"patience_s": DEADLINE_S} | ROUTES[route] | options)


def node_of(*sources: Any) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=len(sources), weights=(1.0,) * len(sources), plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, list(sources))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def request(start: int, mixture: str = "hangs") -> bytes:
    return encode_batch_request(BatchRequest(mixture, start, SIZE, key_words(3)))


def abandon(hanging: Hanging, calls: int, first: int = 0) -> None:
    """Make that many calls of the mixture that hangs, each with another batch, and cancel them when they hang."""
    before = hanging.source.taken
    with grpc.insecure_channel(hanging.server.address) as channel:
        call = channel.unary_unary(methods.GET_BATCH_AT)
        under_way = [call.future(request(first + SIZE * i)) for i in range(calls)]
        until(lambda: hanging.source.taken >= before + calls or any(one.done() for one in under_way))
        for one in under_way:
            one.cancel()


class Next(threading.Thread):
    """`next(batches)` in a thread: the batch, or the error, when it has ended."""

    def __init__(self, batches: BatchIterator):
        super().__init__(daemon=True)
        self.batch: dict[str, np.ndarray] | None = None
        self.error: BaseException | None = None
        self._batches = batches
        self.start()

    def run(self) -> None:
        try:
            self.batch = next(self._batches)
        except BaseException as error:
            self.error = error
