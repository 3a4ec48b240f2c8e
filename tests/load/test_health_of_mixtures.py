"""Health of a mixture says whether its sources answer, and that of the server whether those of any mixture do."""

import shutil
import sys
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mixserve.cli.health import probe
from mixserve_client.wire import health, methods
from tests import hanging_source
from tests.load.hanging import DEADLINE_S, SIZE, Hanging, abandon, request, until
from tests.processes import server_process

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def healths(address: str, *mixtures: str) -> list[str]:
    """Of the server, and of the mixtures."""
    return [probe(address, DEADLINE_S, mixture=mixture) for mixture in (None, *mixtures)]


def service(address: str, name: str) -> str:
    """The health of a service by its whole name."""
    with grpc.insecure_channel(address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=name), timeout=DEADLINE_S
        )
    return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)


def hang(hanging: Hanging) -> None:
    """Until all threads that read are inside the source, for nobody."""
    hanging.switch.touch()
    for i in range(3):
        abandon(hanging, 2, first=100 * i)


@pytest.mark.parametrize("alone", [False, True])
def test_a_mixture_all_of_whose_readers_hang_does_not_serve_until_they_come_back(make, alone):
    hanging = make(alone=alone, calls_per_mixture=2)
    address = hanging.server.address
    assert healths(address, "hangs") == ["SERVING", "SERVING"]
    hang(hanging)
    until(lambda: healths(address, "hangs")[1] == "NOT_SERVING")  # the last call has been seen to be gone
    if alone:
        assert healths(address) == ["NOT_SERVING"]
    else:
        assert healths(address, "train") == ["SERVING", "SERVING"]
    assert service(address, methods.SERVICE_NAME) == "SERVING"  # for probes that restart the server
    hanging.switch.unlink()
    until(lambda: healths(address, "hangs") == ["SERVING", "SERVING"])


def test_a_mixture_whose_only_read_is_late_does_not_serve_for_a_while(make):
    hanging = make(read_timeout_s=1.0)
    hanging.switch.touch()
    with grpc.insecure_channel(hanging.server.address) as channel:
        call = channel.unary_unary(methods.GET_BATCH_AT).future(request(0))
        assert healths(hanging.server.address, "hangs") == ["SERVING", "SERVING"]
        assert call.exception(DEADLINE_S).code() is grpc.StatusCode.UNAVAILABLE
    assert healths(hanging.server.address, "hangs") == ["SERVING", "NOT_SERVING"]
    until(lambda: healths(hanging.server.address, "hangs") == ["SERVING", "SERVING"])  # nobody has tried since


def test_watches_see_it_too(make):
    hanging = make(calls_per_mixture=2)
    seen = list[int]()
    with grpc.insecure_channel(hanging.server.address) as channel:
        wanted = health_pb2.HealthCheckRequest(service=f"{health.MIXTURE}/hangs")
        watch = health_pb2_grpc.HealthStub(channel).Watch(wanted)
        watching = threading.Thread(target=lambda: seen.extend(_statuses(watch)), daemon=True)
        watching.start()
        until(lambda: seen == [SERVING])
        hang(hanging)
        until(lambda: seen == [SERVING, NOT_SERVING])
        hanging.switch.unlink()
        until(lambda: seen == [SERVING, NOT_SERVING, SERVING])
        watch.cancel()
        watching.join(DEADLINE_S)


def _statuses(watch):
    try:
        for reply in watch:
            yield reply.status
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.CANCELLED


def test_a_mixture_that_is_not_there(make):
    hanging = make()
    assert "unknown service" in probe(hanging.server.address, DEADLINE_S, mixture="other")
    assert "unknown service" in probe(hanging.server.address, DEADLINE_S, mixture="")
    with grpc.insecure_channel(hanging.server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="mixture/other"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


CONFIG = """
mixtures:
  train: {{sources: {{files: {{kind: factory, function: "hanging:make_source", arguments: {{path: nil}}, weight: 1}}}}}}
  hangs: {{sources: {{files: {{kind: factory, function: "hanging:make_source", arguments: {{path: sw}}, weight: 1}}}}}}
server: {{port: 0, processes: {processes}, limits: {{calls_per_mixture: 1, read_timeout_s: 6}}}}
"""


@pytest.mark.parametrize(
    "processes", [1, pytest.param(2, marks=pytest.mark.skipif(sys.platform != "linux", reason=""))]
)
def test_health_of_a_server_process_adds_up(tmp_path, processes):
    shutil.copy(Path(hanging_source.__file__), tmp_path / "hanging.py")
    config = tmp_path / "mixture.yaml"
    config.write_text(CONFIG.format(processes=processes))
    switch = tmp_path / "sw"
    with server_process(config, "--health-port", "0", real=processes > 1) as server:
        address, port = server.address(), server.wait_for_log(r"health on (\S+)").group(1)
        try:
            with grpc.insecure_channel(address) as channel:
                call = channel.unary_unary(methods.GET_BATCH_AT)
                assert call(request(0), timeout=DEADLINE_S)
                assert healths(port, "train", "hangs") == ["SERVING"] * 3
                switch.touch()
                for i in range(3):  # one worker has three that read
                    with pytest.raises(grpc.RpcError):
                        call(request(100 + SIZE * i), timeout=1)
                expected = ["SERVING", "SERVING", "NOT_SERVING"]
                for one in (port, address):
                    until(lambda one=one: healths(one, "train", "hangs") == expected)
                assert call(request(0, "train"), timeout=DEADLINE_S)
                switch.unlink()
                for one in (port, address):
                    until(lambda one=one: healths(one, "train", "hangs") == ["SERVING"] * 3)
        finally:
            switch.unlink(missing_ok=True)
