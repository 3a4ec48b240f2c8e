"""OpenTelemetry's environment variables -> where `mixserve serve` sends its spans."""

import os
import threading
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mixserve import __version__
from mixserve.config import ConfigError
from mixserve_client.schema.text import show

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

# Sends the spans that wait, for up to so many seconds.
Flush = Callable[[float], None]

_EXPORTER, _DISABLED = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_OTLP = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}
_EXTRA = "pip install 'mixserve[tracing]'"


def export_spans() -> Flush:
    """Send spans to the exporters that OTEL_TRACES_EXPORTER names (unset: none), from now on.

    The SDK reads the other variables by itself: those of samplers, resources, batches and exporters. Raises ConfigError
    for unknown values, and if what they need is not installed.
    """
    names = [name for one in os.environ.get(_EXPORTER, "").split(",") if (name := one.strip().lower()) != "none"]
    if not any(names) or os.environ.get(_DISABLED, "").strip().lower() == "true":
        return _nothing
    unknown = [name for name in names if name not in ("otlp", "console")]
    if unknown:
        raise ConfigError(
            f"{_EXPORTER} must be otlp, console or none, or several of these with commas between, got "
            f"{show(unknown[0])}"
        )
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(f"{_EXPORTER} is set, and OpenTelemetry's SDK is not installed: {_EXTRA}") from error
    # Several workers, and servers that come and go on one host, are told apart by their ids.
    about = {"service.version": __version__, "service.instance.id": str(uuid4())}
    resource = Resource.create(about)
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "mixserve"}))
    provider = TracerProvider(resource=resource)
    for name in dict.fromkeys(names):
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    trace.set_tracer_provider(provider)
    return lambda seconds: _flush(provider.force_flush, seconds)


def _exporter(name: str) -> "SpanExporter":
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    variable, protocol = next(
        ((one, value) for one in _PROTOCOLS if (value := os.environ.get(one, "").strip())), ("", "grpc")
    )
    if protocol not in _OTLP:
        raise ConfigError(f"{variable} must be {' or '.join(_OTLP)}, got {show(protocol)}")
    try:
        return import_module(_OTLP[protocol]).OTLPSpanExporter()
    except ImportError as error:
        raise ConfigError(f"{_EXPORTER} is otlp, and the exporter for {protocol} is not installed: {_EXTRA}") from error


def _flush(flush: Callable[[], Any], seconds: float) -> None:
    # In a thread, since the SDK waits for a collector that does not answer for as long as its exporter tries.
    thread = threading.Thread(target=flush, name="mixserve-spans", daemon=True)
    thread.start()
    thread.join(seconds)


def _nothing(_: float) -> None:
    pass
