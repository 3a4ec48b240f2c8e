"""What `mixserve serve` exports, as OpenTelemetry's environment variables say; and what is not loaded without them."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import mixserve.tracing
from mixserve.trace_export import export_spans
from mixserve_client import MixClient
from tests.processes import DEADLINE_S, ServerProcess, write_mixture
from tests.tracing.recorded import Recorded, about, forget_provider, id_of, recording

UNTRACED = """
import sys
import numpy as np
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client, serve
from mixserve_client import MixClient

node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [ArraySource({"x": np.arange(9)})])
with serve({"train": node}) as server:
    for one in (MixClient.connect(server.address), local_client({"train": node})):
        one.get_batch_at(0, 4, key=1)
        list(one.batches(4, key=1, stop=16))
        one.close()
assert not [name for name in sys.modules if name.startswith("opentelemetry") or name.endswith(".spans")]
"""


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    with recording() as found:
        yield found


@pytest.fixture(autouse=True)
def _whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span comes whole, not in pieces of a buffer between which other processes write to the same log."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")


@pytest.fixture
def unset() -> Iterator[None]:
    """No provider, and none after the test."""
    yield
    forget_provider()


def test_without_configuration_nothing_of_opentelemetry_is_loaded():
    subprocess.run([sys.executable, "-c", UNTRACED], check=True, timeout=DEADLINE_S)


def test_spans_are_written_before_the_server_ends(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    log = answer_a_call(tmp_path)
    spans = {span["name"]: span for span in written(log)}
    asked = recorded.named("mixserve.request")[-1]
    call = spans["mixserve.GetBatchAt"]
    assert call["parent_id"] == f"0x{id_of(asked):016x}"
    assert call["context"]["trace_id"] == f"0x{asked.context.trace_id:032x}"
    assert spans["gather"]["parent_id"] == call["context"]["span_id"]
    about = call["resource"]["attributes"]
    assert about["service.name"] == "mixserve"
    assert about["deployment.environment"] == "test"
    assert about["service.instance.id"]


def answer_a_call(folder: Path, *options: str) -> str:
    """The log of `mixserve serve` with these options, which has answered a call and then ended."""
    server = ServerProcess(write_mixture(folder), *options, real=True)
    try:
        with MixClient.connect(server.address(), patience_s=DEADLINE_S) as client:
            client.get_batch_at(0, 4, key=1)
        assert server.terminate() == 0
    finally:
        server.kill()
    return server.log()


def written(log: str) -> Iterator[dict[str, Any]]:
    """The spans that the console exporter has written between the lines of a log."""
    decoder, at = json.JSONDecoder(), 0
    while (at := log.find('{\n    "name"', at)) >= 0:
        span, at = decoder.raw_decode(log, at)
        yield span


def test_sampler_and_names_are_those_of_the_environment(unset, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console, none")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.01")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=data")
    flush = export_spans()
    provider = cast(TracerProvider, trace.get_tracer_provider())
    assert "TraceIdRatioBased{0.01}" in provider.sampler.get_description()
    assert provider.resource.attributes["service.name"] == "data"
    mixserve.tracing.look()
    assert mixserve.tracing.spans is not None
    flush(1.0)
    provider.shutdown()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_gets_the_spans(tmp_path, monkeypatch, protocol):
    pytest.importorskip("opentelemetry.exporter.otlp", reason="the extra tracing is not installed")
    with collector(protocol) as (port, names):
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "data")
        answer_a_call(tmp_path)
    assert ("data", "mixserve.GetBatchAt") in names
    assert ("data", "gather") in names


def test_a_collector_that_is_away_does_not_hold_the_end(tmp_path, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp", reason="the extra tracing is not installed")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
    answer_a_call(tmp_path, "--grace-s", "0.5")


class collector:  # noqa: N801
    """A stand-in for a collector: its port, and (service, span) of all that it got."""

    def __init__(self, protocol: str):
        self._protocol = protocol
        self.got: list[tuple[str, str]] = []

    def __enter__(self) -> tuple[int, list[tuple[str, str]]]:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp

        def note(data: bytes) -> bytes:
            for one in otlp.ExportTraceServiceRequest.FromString(data).resource_spans:
                (service,) = [a.value.string_value for a in one.resource.attributes if a.key == "service.name"]
                self.got += [(service, span.name) for scope in one.scope_spans for span in scope.spans]
            return otlp.ExportTraceServiceResponse().SerializeToString()

        if self._protocol == "grpc":
            service = "opentelemetry.proto.collector.trace.v1.TraceService"
            handler = grpc.unary_unary_rpc_method_handler(lambda data, _: note(data))
            server = grpc.server(ThreadPoolExecutor(2))
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            self._stop = lambda: server.stop(None)
            return port, self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                reply = note(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: Any) -> None:
                pass

        http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        self._stop = lambda: (http.shutdown(), http.server_close())
        return http.server_port, self.got

    def __exit__(self, *_: object) -> None:
        self._stop()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp,zipkin"}, "must be otlp, console or none"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_PROTOCOL must be grpc or http/protobuf",
        ),
    ],
)
def test_wrong_variables_are_said(tmp_path: Path, variables, said):
    ended = serve(tmp_path, variables)
    assert ended.returncode == 2
    assert said in ended.stderr


@pytest.mark.parametrize(
    ("lacking", "exporter"), [("opentelemetry.sdk.trace", "console"), ("opentelemetry.exporter.otlp", "otlp")]
)
def test_the_extra_that_is_missing_is_named(tmp_path: Path, lacking, exporter):
    # As where it is not installed: its import fails.
    ended = serve(tmp_path, {"OTEL_TRACES_EXPORTER": exporter}, f"import sys; sys.modules[{lacking!r}] = None; ")
    assert ended.returncode == 2
    assert "pip install 'mixserve[tracing]'" in ended.stderr


@pytest.mark.parametrize("off", [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
def test_tracing_can_be_switched_off(monkeypatch, off):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    for name, value in off.items():
        monkeypatch.setenv(name, value)
    export_spans()(1.0)
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def serve(folder: Path, variables: dict[str, str], before: str = "") -> "subprocess.CompletedProcess[str]":
    code = before + "import sys; from mixserve.cli.start import main; sys.argv[0] = 'mixserve'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "serve", str(write_mixture(folder))],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_each_process_of_a_server_exports_and_hands_parents_on(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    server = ServerProcess(write_mixture(tmp_path), "--processes", "2", real=True)
    try:
        server.address()
        second = server.wait_for_log(r"worker 1: answers, and at (\S+) alone").group(1)
        with MixClient.connect(second, patience_s=DEADLINE_S, shared_memory=False) as client:
            client.get_batch_at(0, 4, key=1)
            client.session("one").close()
        assert server.terminate() == 0
    finally:
        server.kill()
    spans = {span["name"]: span for span in written(server.log())}
    asked = {about(span)["rpc.method"]: span for span in recorded.named("mixserve.request")}
    for method in ("GetBatchAt", "OpenSession"):
        assert spans[f"mixserve.{method}"]["parent_id"] == f"0x{id_of(asked[method]):016x}"
    # The second process answers batches, and the first keeps the sessions.
    of_batch, of_session = (
        spans[f"mixserve.{method}"]["resource"]["attributes"]["service.instance.id"]
        for method in ("GetBatchAt", "OpenSession")
    )
    assert of_batch != of_session
