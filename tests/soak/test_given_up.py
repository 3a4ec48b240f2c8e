"""Clients that give up at any time: calls, streams, channels, watches and memory. Nothing of them is counted for good.

It lasts MIXSERVE_GIVEN_UP_S seconds.
"""

import gc
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import jax
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve.limits import ServerLimits
from mixserve_client import MixClient, MixserveError
from mixserve_client.wire import health, methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.bulk import HELLO, Kind
from tests.bulk.peers import header, request
from tests.bulk_calls import bulk_token
from tests.processes import DEADLINE_S, ONE_SIZE
from tests.tokens.calling import KEY, REFLECTION

LASTS_S = float(os.environ.get("MIXSERVE_GIVEN_UP_S") or 8)
ROW_BYTES, LENGTH = 16 << 10, 64
WATCH = "/grpc.health.v1.Health/Watch"
MIXTURES = ("train", "slow")
SOON_S = 0.05  # a call is given up after up to so long


class UnsteadySource:
    """Rows that take up to 20 ms."""

    content_id = "is not read for the fingerprint"

    def __len__(self) -> int:
        return LENGTH

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {"x": jax.ShapeDtypeStruct((ROW_BYTES,), np.uint8)}

    def take(self, record_ids: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(random.random() * 0.02)
        if random.random() < 0.05:
            raise OSError("this record cannot be read now")
        return {"x": np.zeros((len(record_ids), ROW_BYTES), np.uint8)}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For shared memory. Its path is short: that of a socket may have 107 bytes, and `tmp_path` has the test's name."""
    return tmp_path_factory.mktemp("memory")


@pytest.fixture
def server(tmp_path: Path, folder: Path) -> Iterator[MixServer]:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    copied = ArraySource({"x": np.zeros((LENGTH, ROW_BYTES), np.uint8)})
    nodes = {"train": MixDataSourcesNode(config, [copied]), "slow": MixDataSourcesNode(config, [UnsteadySource()])}
    limits = ServerLimits(calls_per_mixture=3, reply_bytes=4 << 20, request_timeout_s=1.0, read_timeout_s=5.0)
    with serve(nodes, shared_memory=str(folder), state_dir=tmp_path / "state", limits=limits) as running:
        yield running


class Hurried:
    """Does one thing after another to a server, and gives most of it up. `counts` how often it did what."""

    def __init__(self, server: MixServer, folder: Path, seed: int):
        self._server, self._folder, self._random = server, folder, random.Random(seed)
        self._seed = seed
        self.counts = dict[str, int]()

    def run(self, until: float) -> None:
        does: list[Callable[[], None]] = [
            self.call, self.call, self.stream, self.stream, self.say_nothing, self.channel, self.channel, self.stranger,
            self.watch, self.reflect, self.session, self.iterate, self.schedule,
        ]  # fmt: skip
        while time.monotonic() < until:
            do = self._random.choice(does)
            with suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError, MixserveError, OSError):
                do()
            self.counts[do.__name__] = self.counts.get(do.__name__, 0) + 1

    def _open(self) -> grpc.Channel:
        # A connection of its own, rather than that of others to the same address.
        return grpc.insecure_channel(self._server.address, [("grpc.use_local_subchannel_pool", 1)])

    def _wait(self) -> None:
        time.sleep(self._random.random() * SOON_S)

    def _batch(self, rows: int) -> mix_pb2.GetBatchAtRequest:
        start = self._random.randrange(4) * rows  # few, so that several clients ask for the same
        return mix_pb2.GetBatchAtRequest(mixture=self._random.choice(MIXTURES), key=KEY, start=start, size=rows)

    def call(self) -> None:
        with self._open() as channel:
            for _ in range(self._random.randrange(1, 6)):
                asked = self._batch(self._random.choice((1, 8, 64))).SerializeToString()
                timeout_s = self._random.choice((None, self._random.random() * SOON_S))
                made = channel.unary_unary(methods.GET_BATCH_AT).future(asked, timeout=timeout_s)
            self._wait()
            if self._random.random() < 0.5:
                made.cancel()

    def stream(self) -> None:
        first = self._batch(8)
        asked = mix_pb2.StreamBatchesRequest(first=first, stride=8, count=1000, reply_rows=8).SerializeToString()
        with self._open() as channel:
            call = channel.unary_stream(methods.STREAM_BATCHES)(asked, timeout=2)
            for _ in islice(call, self._random.randrange(4)):
                pass
            self._wait()
            if self._random.random() < 0.5:
                call.cancel()

    def say_nothing(self) -> None:
        method = self._random.choice((methods.GET_BATCH_AT, methods.STREAM_BATCHES, methods.CALL_SESSION, health.CHECK))
        over = threading.Event()

        def silence() -> Iterator[bytes]:
            over.wait(1)
            yield from ()

        with self._open() as channel:
            call = channel.stream_stream(method)(silence())
            self._wait()
            call.cancel()
            over.set()

    def channel(self) -> None:
        with self._open() as channel:
            token = bulk_token(self._server, channel=channel)
        with closing(socket.create_connection(("127.0.0.1", self._server.bulk_port), 2)) as made:
            made.sendall(HELLO + token)
            asked = request(1, count=1000, start=8 * self._random.randrange(4))
            made.sendall(asked[: self._random.choice((len(asked), len(asked), 20))] if asked else b"")
            if self._random.random() < 0.5:
                made.recv(self._random.choice((8, 64 << 10, 1 << 20)))
            if self._random.random() < 0.3:
                made.sendall(header(Kind.CANCEL, 1))
            self._wait()

    def stranger(self) -> None:
        with closing(socket.create_connection(("127.0.0.1", self._server.bulk_port), 2)) as made:
            made.sendall(HELLO[: self._random.randrange(len(HELLO))])
            self._wait()

    def watch(self) -> None:
        asked = health_pb2.HealthCheckRequest(service=self._random.choice(("", "mixture/slow", "x")))
        with self._open() as channel:
            for _ in range(self._random.randrange(1, 13)):
                channel.unary_stream(WATCH)(asked.SerializeToString())
            self._wait()

    def reflect(self) -> None:
        asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        with self._open() as channel:
            call = channel.unary_stream(REFLECTION)(self._random.choice((asked, b"\xff")))
            self._wait()
            call.cancel()

    def session(self) -> None:
        with MixClient.connect(self._server.address, shared_memory=False, bulk=False, patience_s=0.2) as client:
            name, mixture = f"of {self._random.randrange(6)}", self._random.choice(MIXTURES)
            session = client.session(name, mixture=mixture, take_over=True, timeout_s=SOON_S * 2)
            for _ in range(self._random.randrange(4)):
                session.next_batch(self._random.choice((1, 16)))
            if self._random.random() < 0.5:
                session.close()

    def iterate(self) -> None:
        folder = self._random.choice((str(self._folder), False))
        with MixClient.connect(
            self._server.address, shared_memory=folder, patience_s=0.5, name=f"reader {self._seed}"
        ) as client:
            batches = client.batches(8, key=7, mixture=self._random.choice(MIXTURES), prefetch=4)
            for _ in islice(batches, self._random.randrange(5)):
                pass
            if self._random.random() < 0.5:
                batches.close()

    def schedule(self) -> None:
        with self._open() as channel:
            entry = mix_pb2.ScheduleEntry(start=self._random.randrange(1, 1 << 20), weights=[1.0])
            asked = mix_pb2.DefineScheduleRequest(mixture="train", entries=[entry])
            made = channel.unary_unary(methods.DEFINE_SCHEDULE).future(asked.SerializeToString())
            if self._random.random() < 0.5:
                made.cancel()
            else:
                made.result(2)


def counted(server: MixServer) -> dict[str, Any]:
    """What the server counts, holds or has registered for calls and connections that there are."""
    server._services.mix._replies._cache._replies.clear()  # it may keep some for a minute, bounded
    gc.collect()  # errors and the frames that they passed may refer to one another, and to the buffer of a reply
    work, bulk, memory = server._work, server._bulk, server._memory
    assert bulk is not None
    assert memory is not None
    threads = {
        "single": server._single.threads,
        "describing": server._single._describing,
        "streams": server._streams._threads,
        "refused streams": server._streams._threads._refusing,
        "bulk": bulk._threads._threads,
        "reflection": server._reflection._threads,
        "refused": server._guard._threads,
        "leases": server._sessions._other_threads,
        **server._sessions._threads,
        **{f"health {at}": one for at, one in enumerate(server._health._threads)},
    }
    jobs = {**{f"reads of {name}": one for name, one in work._readers.items()}, **work.sessions.jobs}
    shares = {**work.shares, "lists": work.sessions.shares[methods.LIST_SESSIONS]}
    firsts = [*server._single.firsts, server._streams.first, *server._sessions.firsts, *server._health.firsts]
    return {
        "calls": server._answers.calls._running,
        "calls of gRPC": len(server._server._state.rpc_states),
        "unread bytes": server._unread.bytes,
        "unread of connections": list(server._unread._connections),
        "streams that send": len(server._streams._sending),
        "streams of a connection": dict(server._streams._threads._of_one),
        "silent calls": sum(len(first._silent) + len(first._ending) for first in firsts),
        "tasks": {name: one._in_flight for name, one in threads.items() if one._in_flight},
        "queues": {name: len(one._queues) for name, one in threads.items() if one._queues},
        "threads that run": {name: one._running for name, one in threads.items() if one._running},
        "shares": {name: share.loads() for name, share in shares.items() if any(map(sum, share.loads().values()))},
        "threads held": {
            name: share._free - share.threads + share._without - len(share._mixtures)
            for name, share in shares.items()
            if share._free != share.threads or share._without != len(share._mixtures)
        },
        "jobs": {name: len(one._running) for name, one in jobs.items() if one._running},
        "calls of sessions that were left": len(work.sessions._left),
        "turns": server._services.mix._turns._waiting,
        "bulk channels": bulk.channels,
        "strangers": len(bulk._door._strangers),
        "bytes of waiting requests": (bulk.requests.bytes, dict(bulk.requests._by_channel)) != (0, {}),
        "offers": len(bulk._offers._offers) - sum(bulk._offers._of_one.values()),
        "bytes of bulk replies": server._answers.bulk_memory._pool.lent_bytes,
        "slots": len(memory._slots),
        "connections of shared memory": len(memory._connections),
        "health watches": len(server._health._status._told),
    }


def watches_are_free(server: MixServer) -> bool:
    """Whether health may be watched as often as it says."""
    with ExitStack() as opened:
        for _ in range(6):
            channel = opened.enter_context(
                grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)])
            )
            calls = [channel.unary_stream(WATCH)(b"", timeout=DEADLINE_S) for _ in range(10)]
            if not all(health_pb2.HealthCheckResponse.FromString(next(call)).status for call in calls):
                return False
            for call in calls:
                opened.callback(call.cancel)
    return True


class _TextOnly(logging.Filter):
    """Leaves of a record its text: pytest keeps records, and their tracebacks lead to the buffers of replies."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
        return True


@pytest.fixture
def logged_as_text() -> Iterator[None]:
    logger, text_only = logging.getLogger("mixserve"), _TextOnly()
    logger.addFilter(text_only)
    yield
    logger.removeFilter(text_only)


@pytest.mark.alone
@pytest.mark.usefixtures("logged_as_text")
@pytest.mark.timeout(120 + LASTS_S)
def test_what_is_given_up_is_counted_no_longer(server: MixServer, folder: Path) -> None:
    before = counted(server)
    until = time.monotonic() + LASTS_S
    hurried = [Hurried(server, folder, seed) for seed in range(8)]
    threads = [threading.Thread(target=one.run, args=(until,)) for one in hurried]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LASTS_S + DEADLINE_S)
    did = {name: sum(one.counts.get(name, 0) for one in hurried) for name in hurried[0].counts}
    print(did)
    until = time.monotonic() + DEADLINE_S
    while (left := {name: value for name, value in counted(server).items() if value != before[name]}) and (
        time.monotonic() < until
    ):
        time.sleep(0.1)
    assert not left
    assert watches_are_free(server)
