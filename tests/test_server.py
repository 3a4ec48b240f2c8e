"""The server at its edges: start, health, drain, kill and restart, and its answers to other protocols."""

import threading
import time
from contextlib import suppress
from queue import Queue

import grpc
import jax
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve.cli.health import probe
from mixserve.servicer import Services
from mixserve_client import DeadlineExceeded, InvalidRequest, MixClient, Unavailable, UnknownMixture
from mixserve_client.wire import methods
from mixserve_client.wire.session import REQUEST_BYTES_LIMIT
from tests.conftest import assert_batches_equal, make_node
from tests.processes import server_process, write_mixture

DEADLINE_S = 60


class Slow:
    """A source that answers when the test lets it."""

    content_id = "is not read at the start"

    def __init__(self):
        self.reading, self.go = threading.Event(), threading.Event()

    def __len__(self):
        return 3

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids):
        self.reading.set()
        assert self.go.wait(DEADLINE_S)
        return {"x": record_ids.astype(np.int32)}


def slow_node() -> tuple[Slow, MixDataSourcesNode]:
    source = Slow()
    return source, MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [source])


def in_thread(task) -> tuple[threading.Thread, list]:
    results: list = []
    thread = threading.Thread(target=lambda: results.append(task()))
    thread.start()
    return thread, results


def test_draining_finishes_running_calls_and_refuses_new_ones():
    source, node = slow_node()
    server = serve({"x": node})
    client = MixClient.connect(server.address)
    running, batches = in_thread(lambda: client.get_batch_at(0, 4, 0))
    assert source.reading.wait(DEADLINE_S)
    stopping, _ = in_thread(lambda: server.stop(grace_s=DEADLINE_S))
    deadline = time.monotonic() + DEADLINE_S
    while probe(server.address, 5) != "NOT_SERVING":
        assert time.monotonic() < deadline
    with MixClient.connect(server.address, patience_s=0.1) as other, pytest.raises(Unavailable, match="stopping"):
        other.mixtures()
    assert not server.wait(0)
    source.go.set()
    running.join(DEADLINE_S)
    stopping.join(DEADLINE_S)
    assert batches[0]["x"].shape == (4,)
    assert server.wait(0)
    client.close()


def test_a_drain_ends_with_its_grace():
    source, node = slow_node()
    server = serve({"x": node})
    client = MixClient.connect(server.address, patience_s=0.5)

    def ask() -> str:
        with pytest.raises(Unavailable) as caught:
            client.get_batch_at(0, 4, 0)
        return str(caught.value)

    running, said = in_thread(ask)
    assert source.reading.wait(DEADLINE_S)
    server.stop(grace_s=0.1)
    running.join(DEADLINE_S)
    assert "patience_s" in said[0]
    source.go.set()
    client.close()


def test_not_serving_until_warmed_up():
    class Held(Services):
        warm = threading.Event()

        def warm_up(self):
            assert self.warm.wait(DEADLINE_S)

    server = MixServer(Held({"x": make_node()}), "127.0.0.1:0")
    starting, _ = in_thread(server.start)
    deadline = time.monotonic() + DEADLINE_S
    while probe(server.address, 5) != "NOT_SERVING":
        assert time.monotonic() < deadline
    with MixClient.connect(server.address, patience_s=0.1) as client, pytest.raises(Unavailable, match="starting"):
        client.mixtures()
    Held.warm.set()
    starting.join(DEADLINE_S)
    assert probe(server.address, 5) == "SERVING"
    server.stop()


def test_health_is_for_the_server_and_the_service(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", methods.SERVICE_NAME):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
    assert probe("127.0.0.1:1", 1).startswith("Unavailable")


def test_health_answers_while_all_threads_are_busy():
    source, node = slow_node()
    with serve({"x": node}) as server, MixClient.connect(server.address) as client:
        waiting = [in_thread(lambda: client.get_batch_at(0, 1, 0)) for _ in range(40)]
        assert source.reading.wait(DEADLINE_S)
        assert probe(server.address, 5) == "SERVING"
        source.go.set()
        for thread, batches in waiting:
            thread.join(DEADLINE_S)
            assert batches


def test_reflection_lists_the_services(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=methods.SERVICE_NAME),
        ]
        listed, file = stub.ServerReflectionInfo(iter(asked))
    names = {service.name for service in listed.list_services_response.service}
    assert {methods.SERVICE_NAME, "grpc.health.v1.Health"} <= names
    assert b"GetBatchAt" in file.file_descriptor_response.file_descriptor_proto[0]


def test_other_methods_and_oversized_requests_are_refused_and_the_server_goes_on(server, node):
    with grpc.insecure_channel(server.address) as channel:
        for method, request, code in (
            (f"/{methods.SERVICE_NAME}/Nothing", b"", grpc.StatusCode.UNIMPLEMENTED),
            (methods.GET_BATCH_AT, bytes(REQUEST_BYTES_LIMIT + 1), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(request)
            assert caught.value.code() is code
    with MixClient.connect(server.address) as client:
        assert client.mixtures() == ("train",)


def test_a_port_in_use_is_an_error_that_says_so(server, node):
    with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:\d+: Address already in use"):
        serve({"train": node}, server.address)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:port", "192.0.2.1:50051"])
def test_addresses_that_cannot_be_had(address, node):
    with pytest.raises(OSError, match="cannot listen on"):
        serve({"train": node}, address)


@pytest.mark.parametrize("nodes", [{}, {"": None}])
def test_a_server_needs_named_mixtures(nodes):
    with pytest.raises(ValueError, match="at least one mixture"):
        serve(nodes)


def test_a_record_that_no_reply_can_hold_is_refused():
    class Vast(Slow):
        def element_spec(self):
            return {"x": jax.ShapeDtypeStruct((1 << 31,), np.uint8)}

    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [Vast()])
    with pytest.raises(ValueError, match=r"at most 2\^30 bytes"):
        Services({"x": node})


def test_sigterm_drains_a_server_process_and_exits_with_0(tmp_path):
    with server_process(write_mixture(tmp_path), real=True) as server:
        with MixClient.connect(server.address()) as client:
            assert client.get_batch_at(0, 8, 0)["tokens"].shape == (8, 16)
        assert server.terminate() == 0
        assert "draining" in server.log()
        assert "stopped" in server.log()


def test_a_killed_server_comes_back_and_the_stream_goes_on_bit_for_bit(tmp_path):
    config = write_mixture(tmp_path)
    with server_process(config, real=True) as first:
        address = first.address()
        port = address.rpartition(":")[2]
        client = MixClient.connect(address, patience_s=DEADLINE_S)
        batches = client.batches(batch_size=64, key=3, prefetch=4)
        streamed = [next(batches) for _ in range(20)]
        first.kill()
        going_on, rest = in_thread(lambda: [next(batches) for _ in range(20)])
        with server_process(config, "--port", port, real=True) as second:
            second.address()
            going_on.join(DEADLINE_S)
            whole = client.get_batch_at(0, 64 * 40, 3)
            joined = {"tokens": np.concatenate([batch["tokens"] for batch in streamed + rest[0]])}
            assert_batches_equal(joined, whole)
            client.close()


def test_a_port_in_use_ends_the_command_with_2_and_no_traceback(tmp_path, server):
    with server_process(write_mixture(tmp_path), "--port", server.address.rpartition(":")[2], real=True) as second:
        assert second.process.wait(DEADLINE_S) == 2
        assert "Address already in use" in second.log()
        assert "Traceback" not in second.log()


def test_a_hanging_source_does_not_keep_a_terminated_server(tmp_path):
    (tmp_path / "hanging.py").write_text(
        "import jax, numpy as np, threading\n"
        "class Hanging:\n"
        "    content_id = 'is not read at the start'\n"
        "    def __len__(self): return 3\n"
        "    def element_spec(self): return {'x': jax.ShapeDtypeStruct((), np.int32)}\n"
        "    def take(self, record_ids): threading.Event().wait()\n"
    )
    config = tmp_path / "mixture.yaml"
    config.write_text(
        "mixtures: {m: {sources: {a: {kind: factory, function: 'hanging:Hanging', weight: 1}}}}\nserver: {port: 0}\n"
    )
    with server_process(config, "--grace-s", "5") as server, MixClient.connect(server.address()) as client:
        with pytest.raises(DeadlineExceeded):
            client.get_batch_at(0, 1, 0, timeout_s=1)
        assert server.terminate() == 0
        assert "still running" not in server.log()  # a call that its client has given up does not count


def test_reflection_streams_do_not_take_the_threads_of_calls(server):
    with grpc.insecure_channel(server.address) as channel, MixClient.connect(server.address) as client:
        stub, ended = reflection_pb2_grpc.ServerReflectionStub(channel), threading.Event()

        def forever():
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            ended.wait(DEADLINE_S)

        streams = [stub.ServerReflectionInfo(forever()) for _ in range(40)]
        answered = Queue[object]()  # by whichever call found a thread

        def read(stream):
            with suppress(grpc.RpcError):  # cancelled below
                answered.put(next(stream, None))

        readers = [in_thread(lambda stream=stream: read(stream))[0] for stream in streams]
        assert answered.get(timeout=DEADLINE_S) is not None
        assert client.get_batch_at(0, 3, 0, timeout_s=DEADLINE_S)["id"].shape == (3,)
        ended.set()
        for stream in streams:
            stream.cancel()
        for reader in readers:
            reader.join(DEADLINE_S)


def test_a_unix_socket_is_not_taken_from_a_server_that_listens(tmp_path, node):
    address = f"unix://{tmp_path}/socket"
    with serve({"x": node}, address) as first:
        with pytest.raises(OSError, match="another server does"):
            serve({"x": node}, address)
        with MixClient.connect(first.address) as client:
            assert client.mixtures() == ("x",)
    with pytest.raises(OSError, match="there is no folder"):
        serve({"x": node}, f"unix://{tmp_path}/none/socket")


def test_long_and_odd_names_of_mixtures_are_refused_by_class(server):
    with MixClient.connect(server.address) as client:
        for name in ("x" * 20_000, "x" * 100_000):
            with pytest.raises(UnknownMixture, match="must be one of 'train'"):
                client.mixture(name)
        with pytest.raises(InvalidRequest, match="must have at most 131072 bytes"):
            client.mixture("x" * 900_000)
        for name in (123, "\ud800", "a\nb"):
            with pytest.raises(InvalidRequest, match="mixture must be"):
                client.get_batch_at(0, 1, 0, mixture=name)
