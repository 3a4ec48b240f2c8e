"""Connections take turns, and requests come in time: many calls of one connection do not keep others waiting."""

import threading
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.attacks.raw import RawConnection
from mixserve import MixDataSourcesNode, MixServer, serve
from mixserve.limits import ServerLimits
from mixserve.serving.bounded_threads import BoundedThreads
from mixserve.serving.threads import CountingThreads
from mixserve_client import MixClient, Overloaded
from mixserve_client.wire import methods
from tests.processes import DEADLINE_S
from tests.waiting import wait_until

HEALTH = "/grpc.health.v1.Health/"
TIMEOUT_S = 1.0


@pytest.fixture
def server(node: MixDataSourcesNode) -> Iterator[MixServer]:
    limits = ServerLimits(request_timeout_s=TIMEOUT_S)
    with serve({"train": node}, shared_memory=False, health_port=0, limits=limits) as running:
        yield running


def test_a_task_waits_for_one_task_of_each_other_connection() -> None:
    threads, go, order = CountingThreads(1, "test"), threading.Event(), list[str]()
    try:
        threads.submit_for("first", lambda: go.wait(DEADLINE_S))
        for peer in ("many", "many", "many", "other", "many", "third"):
            threads.submit_for(peer, lambda peer=peer: order.append(peer))
        go.set()
        wait_until(lambda: len(order) == 6, "six tasks")
        assert order == ["many", "other", "third", "many", "many", "many"]
        assert not threads._queues
    finally:
        go.set()
        threads.shutdown()


def test_blocked_tasks_make_room_for_as_many_others() -> None:
    threads, go, done = CountingThreads(1, "test", most_blocked=2), threading.Event(), list[int]()
    try:
        for _ in range(4):
            threads.submit_for("one", lambda: go.wait(DEADLINE_S))
        assert threads.waiting == 3
        threads.set_blocked(1)
        assert threads.waiting == 2
        threads.set_blocked(9)
        assert threads.waiting == 1  # no more threads than there may be
        go.set()
        wait_until(lambda: threads._running == 0, "that no thread runs")
        threads.set_blocked(0)
        for number in range(50):
            threads.submit_for("one", lambda number=number: done.append(number))
        wait_until(lambda: len(done) == 50, "fifty tasks")
        assert done == list(range(50))
    finally:
        go.set()
        threads.shutdown()


def test_the_end_of_a_task_is_told_with_its_result_or_error() -> None:
    threads = CountingThreads(2, "test")
    try:
        assert threads.submit_for("", lambda: 7).result(DEADLINE_S) == 7
        with pytest.raises(ZeroDivisionError):
            threads.submit_for("", lambda: 1 // 0).result(DEADLINE_S)
        assert threads._in_flight == 0
    finally:
        threads.shutdown()


def test_each_idle_thread_is_visited_once() -> None:
    threads, begun, go, seen = CountingThreads(4, "test"), threading.Barrier(5), threading.Event(), list[int]()
    try:
        for _ in range(4):
            threads.submit_for("", lambda: (begun.wait(DEADLINE_S), go.wait(DEADLINE_S)))
        begun.wait(DEADLINE_S)
        threads.visit(lambda: seen.append(threading.get_ident()))
        assert seen == []  # all are busy
        go.set()
        wait_until(lambda: threads._running == 0, "that no thread runs")
        threads.visit(lambda: seen.append(threading.get_ident()))
        wait_until(lambda: len(seen) == 4, "four tasks")
        assert len(set(seen)) == 4
    finally:
        go.set()
        threads.shutdown()


def test_a_connection_has_so_many_calls_and_others_are_refused_at_once() -> None:
    threads, go, refused = BoundedThreads(1, "test", most_of_one=2), threading.Event(), list[str]()

    def answer(peer: str) -> None:
        try:
            threads.check(peer)
        except Overloaded:
            refused.append(peer)
            return
        go.wait(DEADLINE_S)

    try:
        for peer in ("many", "many", "many", "other", "many"):
            threads.submit_for(peer, lambda peer=peer: answer(peer))
        wait_until(lambda: refused == ["many", "many"], "two refusals")
        assert threads._of_one == {"many": 2, "other": 1}
        go.set()
        wait_until(lambda: not threads._of_one, "that the connection has no task")
    finally:
        go.set()
        threads.shutdown()


def test_grpc_tells_whose_call_it_submits(server: MixServer) -> None:
    """Else all calls would be in one queue."""
    connection = RawConnection(server.address)
    connection.call(methods.STREAM_BATCHES, None)
    wait_until(lambda: len(server._streams._threads._of_one) == 1, "a stream of the connection")
    (peer,) = server._streams._threads._of_one
    assert peer == "ipv4:{}:{}".format(*connection.socket.getsockname())
    connection.close()
    wait_until(lambda: not server._streams._threads._of_one, "that the stream ends")


ALL = [
    methods.GET_BATCH_AT,
    methods.STREAM_BATCHES,
    methods.CALL_SESSION,
    methods.OPEN_SESSION,
    methods.LIST_SESSIONS,
    methods.RENEW_SESSIONS,
]


@pytest.mark.parametrize("method", [*ALL, f"{HEALTH}Check", f"{HEALTH}Watch"])
def test_a_request_that_does_not_come_in_time_ends_its_call(
    server: MixServer, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if no other call needs the thread."""
    for first in server._health._first:
        monkeypatch.setattr(first, "_timeout_s", TIMEOUT_S)
    connection = RawConnection(server.address)
    connection.call(method, None)
    wait_until(lambda: connection.ended == 1, "that the connection is ended")
    connection.close()
    wait_until(lambda: "did not send its request within 1 s: ended it" in caplog.text, "the line in the log")
    assert "request_timeout_s in server.limits" in caplog.text


def test_all_is_answered_beside_hundreds_of_half_open_calls(server: MixServer) -> None:
    connections = [RawConnection(server.address) for _ in range(4)]
    for connection in connections:
        for method in (f"{HEALTH}Check", f"{HEALTH}Watch", methods.GET_BATCH_AT, methods.STREAM_BATCHES):
            for _ in range(60):
                connection.call(method, None)
    with (
        MixClient.connect(server.address, shared_memory=False, bulk=False, patience_s=DEADLINE_S) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(20):
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=2)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            client.get_batch_at(0, 2, key=7, timeout_s=5)
        next(client.batches(2, key=7, timeout_s=5))
        assert next(health.Watch(health_pb2.HealthCheckRequest(), timeout=5)).status == answer.status
    for connection in connections:
        connection.close()


def test_one_connection_cannot_take_all_watches(server: MixServer) -> None:
    connection = RawConnection(server.address)
    for _ in range(100):
        connection.call(f"{HEALTH}Watch", b"")
    wait_until(lambda: connection.ended == 90, "that ninety are ended")
    with grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=5)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    connection.close()
