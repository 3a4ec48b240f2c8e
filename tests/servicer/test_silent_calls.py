"""Calls over gRPC whose requests have not come, beyond what may wait for theirs."""

import time
from contextlib import ExitStack
from threading import Event
from typing import Any

import grpc
import numpy as np

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, ServerLimits, serve
from mixserve.serving.first_request import FirstRequests
from mixserve.serving.silent_calls import SilentCalls
from mixserve.serving.threads import CountingThreads
from mixserve_client import MixClient
from mixserve_client.wire import methods

DEADLINE_S = 30


def make_node() -> MixDataSourcesNode:
    source = ArraySource({"x": np.arange(100, dtype=np.int32)}, name="x")
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [source])


def test_calls_that_send_nothing_are_ended_if_they_are_many(caplog):
    limits = ServerLimits(request_timeout_s=600, calls_per_mixture=60)
    with serve({"train": make_node()}, shared_memory=False, limits=limits) as server, ExitStack() as stack:
        server._silent.most = 10
        going = Event()
        stack.callback(going.set)

        def nothing():
            going.wait()
            yield from ()

        calls = []
        for _ in range(30):
            channel = stack.enter_context(
                grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
            )
            calls.append(channel.stream_unary(methods.GET_BATCH_AT).future(nothing()))
        until = time.monotonic() + DEADLINE_S
        while sum(call.done() for call in calls) < 20:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert server._silent.ended.count == 20
        assert "have waited for their requests" in caplog.text
        with MixClient.connect(server.address, shared_memory=False, patience_s=10) as client:
            assert len(client.get_batch_at(0, 8, 3)["x"]) == 8
        assert sum(call.done() for call in calls) == 20


class Ending:
    """The context of a call whose connection ends: gRPC names another peer from one moment to the next."""

    def __init__(self) -> None:
        self._names = iter(("ipv4:127.0.0.1:1",))
        self.is_cancelled = False

    def peer(self) -> str:
        return next(self._names, "unknown")

    def cancel(self) -> None:
        self.is_cancelled = True


def test_a_connection_that_ends_while_room_is_made_leaves_nothing():
    """Its call ended by a fault, and counted as one that is silent, for good."""
    threads, over = CountingThreads(1, "test"), Event()
    first, calls = FirstRequests(threads), [Ending(), Ending()]
    taken, silent = list[Any](calls)
    try:
        for _ in range(2):
            threads.submit(over.wait, DEADLINE_S)
        assert threads.waiting == 1
        assert first.take(iter([b"request"]), taken) == b"request"
        assert not first._silent
        first._silent[silent] = time.monotonic() - 10  # longer than such calls may wait
        too_many = SilentCalls(None, lambda: [first])
        too_many.most = 0
        too_many.end_most()
        assert [call.is_cancelled for call in calls] == [False, True]
    finally:
        over.set()
        threads.shutdown()
