"""The spans of a test, and the trees that they form."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.util._once import Once

import mixserve.tracing
import mixserve_client.tracing
from tests.processes import DEADLINE_S


class Recorded:
    """The spans that have ended, by name and by parent."""

    def __init__(self, exporter: InMemorySpanExporter):
        self._exporter = exporter

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return tuple(self._exporter.get_finished_spans())

    def clear(self) -> None:
        self._exporter.clear()

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of that name, in the order of their beginnings."""
        return sorted((span for span in self.all if span.name == name), key=lambda span: span.start_time or 0)

    def one(self, name: str) -> ReadableSpan:
        """The only one of that name; waits for it: a server's spans may end after the client has its rows."""
        self.wait_for(lambda: self.named(name))
        (found,) = self.named(name)
        return found

    def children(self, span: ReadableSpan) -> list[ReadableSpan]:
        found = [one for one in self.all if one.parent is not None and one.parent.span_id == id_of(span)]
        return sorted(found, key=lambda one: one.start_time or 0)

    def below(self, span: ReadableSpan) -> Iterator[tuple[ReadableSpan, ReadableSpan]]:
        """(parent, child) of all spans below one."""
        for child in self.children(span):
            yield span, child
            yield from self.below(child)

    def wait_for(self, is_there: Callable[[], Any]) -> None:
        until = time.monotonic() + DEADLINE_S
        while not is_there():
            assert time.monotonic() < until, self.all
            time.sleep(0.005)

    def wait_for_calls(self, request: ReadableSpan, count: int = 1) -> list[ReadableSpan]:
        """The calls of servers that belong to a request."""
        self.wait_for(lambda: len(self.children(request)) >= count)
        return self.children(request)


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def events(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


@contextmanager
def recording(sampler: Sampler = ALWAYS_ON) -> Iterator[Recorded]:
    """As in a program that has configured OpenTelemetry before it makes clients and servers."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    for side in (mixserve.tracing, mixserve_client.tracing):
        assert side.spans is None
        side.look()
        assert side.spans is not None
    try:
        yield Recorded(exporter)
    finally:
        forget_provider()


def forget_provider() -> None:
    """As in a process that has none: other tests of this process have none."""
    for side in (mixserve.tracing, mixserve_client.tracing):
        side.spans = None
    # A process can set one once.
    trace._TRACER_PROVIDER, trace._TRACER_PROVIDER_SET_ONCE = None, Once()
