"""A system that has no thread left, as at the limit of a container: calls wait for one, and none ends the server."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mixserve import MixDataSourcesNode, MixServer, serve
from mixserve.servicer.jobs import Jobs
from mixserve.servicer.session_work import WORDS, SessionCall
from mixserve.serving.threads import CountingThreads
from mixserve_client import MixClient, Unavailable
from mixserve_client.credentials import TokenOptions
from mixserve_client.rpc.replica import Asked, Attempt
from mixserve_client.rpc.replicas import Replicas
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.transport.credentials import Credentials
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.wire import methods
from tests.processes import DEADLINE_S
from tests.tokens.calling import REFLECTION, bearer
from tests.tokens.files import Tokens
from tests.waiting import wait_until

TOO_LARGE = 1 << 46  # a stack for which no machine has addresses


@contextmanager
def no_thread() -> Iterator[None]:
    """In the block, this process cannot start a thread."""
    before = threading.stack_size(TOO_LARGE)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        yield
    finally:
        threading.stack_size(before)


@pytest.fixture
def server(node: MixDataSourcesNode) -> Iterator[MixServer]:
    with serve({"train": node}, shared_memory=False) as running:
        yield running


def test_calls_of_each_kind_wait_for_a_thread(server: MixServer, caplog: pytest.LogCaptureFixture) -> None:
    with grpc.insecure_channel(server.address) as channel:
        # It keeps the thread in which the channel hears of its calls.
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        next(watch)
        with no_thread(), caplog.at_level(logging.ERROR):
            listed = channel.unary_unary(methods.LIST_MIXTURES).future(b"", timeout=DEADLINE_S)
            sessions = channel.unary_unary(methods.LIST_SESSIONS).future(b"", timeout=DEADLINE_S)
            checked = channel.unary_unary("/grpc.health.v1.Health/Check").future(b"", timeout=DEADLINE_S)
            batch = channel.unary_stream(methods.STREAM_BATCHES)(b"", timeout=DEADLINE_S)
            wait_until(lambda: server._single._describing._in_flight == 1, "a call for a description")
            wait_until(lambda: server._sessions._threads[methods.LIST_SESSIONS]._in_flight == 1, "a call for sessions")
            wait_until(lambda: len(server._streams._threads._queues) == 1, "a stream in the queue")
            assert "calls wait for a thread: can't start new thread" in caplog.text
            assert not listed.done()
        # The chores of the server start what is missing.
        assert listed.result()
        assert sessions.result() == b""
        assert health_pb2.HealthCheckResponse.FromString(checked.result()).status
        with pytest.raises(grpc.RpcError) as refused:
            next(batch)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        watch.cancel()
    with MixClient.connect(server.address, shared_memory=False, patience_s=DEADLINE_S) as client:
        assert len(next(client.batches(4, key=7)))


def test_refused_calls_wait_for_a_thread(node: MixDataSourcesNode, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.yaml", {"admin": ("admin", None)})
    with (
        serve({"train": node}, shared_memory=False, tokens=tokens.path) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        next(watch)
        asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        with no_thread():
            refused = channel.unary_unary(methods.LIST_MIXTURES).future(b"", timeout=DEADLINE_S)
            reflected = channel.unary_stream(REFLECTION)(asked, timeout=DEADLINE_S, metadata=bearer(tokens["admin"]))
            wait_until(
                lambda: server._guard._threads._in_flight + server._reflection._threads._in_flight == 2, "both calls"
            )
        assert refused.exception().code() == grpc.StatusCode.UNAUTHENTICATED
        assert next(reflected)
        watch.cancel()


def test_tasks_are_run_when_there_are_threads_again() -> None:
    threads, done = CountingThreads(2, "test"), list[int]()
    with no_thread():
        for number in range(3):
            threads.submit(done.append, number)
    threads.start_missing()
    wait_until(lambda: len(done) == 3, "three tasks")
    wait_until(lambda: threads._running == threads._in_flight == 0, "that no thread runs")
    threads.shutdown()


def test_a_job_without_a_thread_is_unavailable() -> None:
    pool = DaemonThreadPool(1, on_exit=lambda: None)
    jobs = Jobs("train", pool.start, 1, 10.0, WORDS)
    with no_thread(), pytest.raises(Unavailable, match="has no thread for the call"):
        jobs.begin(SessionCall("a call", is_read=True, run=int))
    assert jobs.wait(jobs.begin(SessionCall("a call", is_read=True, run=lambda: 7))) == 7
    pool.close()


def test_a_replica_that_is_left_out_is_asked_again_when_there_are_threads() -> None:
    transports = [GrpcTransport(f"127.0.0.1:{port}", Credentials(None, TokenOptions())) for port in (1, 2)]
    replicas = Replicas(transports, 1.0)
    attempt = Attempt(replicas.all[0], Asked(methods.LIST_MIXTURES, b""))
    replicas.note_failure(attempt, Unavailable("gone"))
    with no_thread():
        replicas.look(attempt.replica.probe_at)
    assert not attempt.replica.is_probed
    wait_until(lambda: attempt.replica.probes > 0, "a probe")
    replicas.close()
    for transport in transports:
        transport.close()
