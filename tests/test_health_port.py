"""Health answers whatever else happens: on the port of the server, and on one of its own."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mixserve import MixDataSourcesNode, MixServer, ServerTls, serve
from mixserve.cli.health import probe
from mixserve.serving.health import _CHECKS, _WATCHES
from mixserve_client import MixClient
from mixserve_client.wire import health, methods
from tests.certificates import NEEDS_OPENSSL, Authority

CHECK, WATCH = health.CHECK, "/grpc.health.v1.Health/Watch"


@pytest.fixture(scope="module")
def running(node: MixDataSourcesNode) -> Iterator[MixServer]:
    with serve({"train": node}, health_port=0, shared_memory=False) as server:
        yield server


def half_open(channel: grpc.Channel, method: str, stack: ExitStack) -> None:
    """Begin a call, and send no request until `stack` ends."""
    ended = threading.Event()

    def requests() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    call = channel.stream_stream(method)(requests())
    stack.callback(call.cancel)
    stack.callback(ended.set)


def health_address(server: MixServer) -> str:
    assert server.health_address is not None
    return server.health_address


@pytest.mark.parametrize("method", [CHECK, WATCH])
@pytest.mark.parametrize("on_own_port", [False, True])
def test_calls_that_never_send_their_request_make_room(running: MixServer, method: str, on_own_port: bool) -> None:
    address = health_address(running) if on_own_port else running.address
    with ExitStack() as stack, grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(10)
        for _ in range(2 * (_CHECKS if method == CHECK else _WATCHES) + 9):
            half_open(channel, method, stack)
        for _ in range(5):
            assert probe(address, 5) == "SERVING"
        assert probe(health_address(running), 5) == "SERVING"


def test_a_service_with_a_long_name_may_be_watched(running: MixServer) -> None:
    asked = health_pb2.HealthCheckRequest(service="a" * 4000).SerializeToString()
    with grpc.insecure_channel(running.address) as channel:
        call = channel.unary_stream(WATCH)(asked, timeout=10)
        told = health_pb2.HealthCheckResponse.FromString(next(call))
        assert told.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        call.cancel()


def test_its_own_port_answers_while_all_other_threads_wait(running: MixServer) -> None:
    with ExitStack() as stack, grpc.insecure_channel(running.address) as channel:
        grpc.channel_ready_future(channel).result(10)
        for method in (methods.GET_MIXTURE, methods.CALL_SESSION, methods.OPEN_SESSION, methods.LIST_SESSIONS):
            for _ in range(20):
                half_open(channel, method, stack)
        for address in (running.address, health_address(running)):
            assert probe(address, 5) == "SERVING"


def test_its_own_port_answers_nothing_else(running: MixServer) -> None:
    with grpc.insecure_channel(health_address(running)) as channel:
        for method in (methods.GET_MIXTURE, methods.LIST_SESSIONS, "/grpc.reflection.v1alpha.ServerReflection/x"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(b"", timeout=5)
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore


def test_watches_are_bounded(running: MixServer) -> None:
    # A connection may have ten calls.
    alone = [("grpc.use_local_subchannel_pool", 1)]
    with ExitStack() as opened:
        channels = [
            opened.enter_context(grpc.insecure_channel(health_address(running), options=alone))
            for _ in range(_WATCHES // 10 + 1)
        ]
        stubs = [health_pb2_grpc.HealthStub(channel) for channel in channels]
        watches = [stubs[i // 10].Watch(health_pb2.HealthCheckRequest(service=f"{i}")) for i in range(_WATCHES - 1)]
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        known = stubs[-1].Watch(health_pb2.HealthCheckRequest())
        assert next(known).status == health_pb2.HealthCheckResponse.SERVING
        with (
            grpc.insecure_channel(health_address(running), options=alone) as other,
            pytest.raises(grpc.RpcError) as refused,
        ):
            next(health_pb2_grpc.HealthStub(other).Watch(health_pb2.HealthCheckRequest(), timeout=5))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # pyright: ignore
        assert probe(health_address(running), 5) == "SERVING"
    deadline = time.monotonic() + 10
    with grpc.insecure_channel(health_address(running)) as channel:
        while True:  # the ended ones make room
            try:
                next(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=5))
                break
            except grpc.RpcError:
                assert time.monotonic() < deadline


def test_watches_that_begin_and_end_do_not_freeze_the_server(running: MixServer) -> None:
    """One that began waited for gRPC's thread, and one that ended kept that waiting: for ever, and all other calls."""

    def churn() -> None:
        with grpc.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for _ in range(20):
                watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=5) for _ in range(10)]
                next(watches[0])
                for watch in watches:
                    watch.cancel()
            done.append(True)

    done: list[bool] = []
    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == len(threads)
    with MixClient.connect(running.address, patience_s=10) as client:
        assert client.mixtures()
    assert probe(running.address, 5) == "SERVING"


def test_a_check_without_a_request_or_of_an_unknown_service_is_an_error(running: MixServer) -> None:
    with grpc.insecure_channel(running.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            list(channel.stream_stream(CHECK)(iter(())))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore
        with pytest.raises(grpc.RpcError) as refused:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x"))
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND  # pyright: ignore


@NEEDS_OPENSSL
def test_it_is_plain_beside_tls(node: MixDataSourcesNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("server")
    tls = ServerTls(pair.certificate, pair.key, authority.ca)
    with caplog.at_level(logging.INFO, "mixserve"), serve({"train": node}, tls=tls, health_port=0) as server:
        assert probe(health_address(server), 5) == "SERVING"
        assert "Unauthenticated" in probe(server.address, 5)
        said = [record.getMessage() for record in caplog.records]
        assert said.index(f"health on {server.health_address}") < said.index(f"serving on {server.address}")
        with grpc.insecure_channel(health_address(server)) as channel, ThreadPoolExecutor(1) as threads:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            threads.submit(server.stop)  # beside: gRPC drops what is not read yet when a call is cancelled
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert "Unavailable" in probe(health_address(server), 1)


def test_wrong_ports_are_errors(running: MixServer, node: MixDataSourcesNode) -> None:
    port = int(running.address.rpartition(":")[2])
    with pytest.raises(OSError, match="cannot listen"):
        serve({"train": node}, health_port=port)
    for wrong in ({"health_port": 70_000}, {"health_port": 0, "health_host": "a b"}):
        with pytest.raises(ValueError, match=r"port|host"):
            serve({"train": node}, **wrong)
