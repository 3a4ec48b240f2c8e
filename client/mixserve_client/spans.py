"""The spans of a client, by OpenTelemetry: one for each batch that a trainer takes, and one for each request.

Only this module knows OpenTelemetry here; `tracing` imports it when there is something to trace.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import Token
from functools import lru_cache
from typing import TypeVar

from opentelemetry import context as otel
from opentelemetry import trace

from mixserve_client.redaction import hide_tokens

T = TypeVar("T")

# Messages of errors are cut: a request that no server answers has many of them.
_SHOWN = 500
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
# "grpc HOST:PORT", as the last way in the name of a transport; what may come after it is about its processes.
_GRPC = re.compile(r"grpc (?:dns:///)?([^\s,]+)")
_SYSTEM = "mixserve"  # a custom value, as the conventions allow: one request may go over gRPC, and on over other ways

Value = str | bool | int | float
TRACEPARENT = "traceparent"  # the key of W3C Trace Context


def configured_tracer(name: str) -> trace.Tracer | None:
    """The user's tracer of that name; None if the user has configured no provider."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return provider.get_tracer(name)


def parse_traceparent(text: str) -> trace.SpanContext | None:
    """The span that `text`, a `traceparent` of W3C Trace Context, names; None if it is empty or malformed."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    made = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags, 16)))
    return made if made.is_valid else None


def format_traceparent(span: trace.SpanContext) -> str:
    """The `traceparent` that names `span`, of 55 characters."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags & 0xFF:02x}"


def mark_error(span: trace.Span, error: BaseException) -> None:
    """Let the span end with `error`. Its text is cut, and has no tokens."""
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(trace.StatusCode.ERROR, _said(error))


@lru_cache(maxsize=256)  # made for each call, of which most are not recorded
def call_attributes(method: str, mixture: str) -> Mapping[str, Value]:
    """What is known when a call of `method`, a path, begins, so that a sampler may decide by it: what OpenTelemetry's
    conventions have, and the mixture (empty: unknown)."""
    service, _, name = method.removeprefix("/").rpartition("/")
    about: dict[str, Value] = {"rpc.system": _SYSTEM, "rpc.service": service, "rpc.method": name}
    return about | {"mixserve.mixture": mixture} if mixture else about


class Current:
    """In the block, `span` is the current one. At its end it ends, with the error that left the block."""

    __slots__ = ("_token", "span")

    def __init__(self, span: trace.Span):
        self.span = span
        self._token: Token[otel.Context] | None = None

    def __enter__(self) -> trace.Span:
        self._token = otel.attach(trace.set_span_in_context(self.span))
        return self.span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        assert self._token is not None
        otel.detach(self._token)
        if error is not None and not isinstance(error, StopIteration):
            mark_error(self.span, error)
        self.span.end()


class RequestSpan:
    """The span of one request, until it is answered: of all its tries, at whichever replicas.

    A context around a request that this thread makes and waits for: then the span is the current one in the block.

    `traceparent` names it for the server, also if it is not recorded.
    """

    __slots__ = ("_at", "_ended", "_failed", "_token", "is_recorded", "span")

    def __init__(self, span: trace.Span):
        self.span = span
        self.is_recorded = span.is_recording()
        self._at = ""
        self._failed = False
        self._ended = list[None]((None,))
        self._token: Token[otel.Context] | None = None

    def __enter__(self) -> "RequestSpan":
        self._token = otel.attach(trace.set_span_in_context(self.span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        assert self._token is not None
        otel.detach(self._token)
        if self.is_recorded:
            self.end(error)

    @property
    def traceparent(self) -> str:
        """As `format_traceparent` of the span."""
        return format_traceparent(self.span.get_span_context())

    def tries(self, transport: str) -> None:
        """The request goes over the transport of that name."""
        if not (self.is_recorded and self._ended):
            return
        before, failed = self._at, self._failed
        self.answered(transport)
        if before:
            name = "continued" if not failed else "retry" if before == self._at else "failover"
            self.span.add_event(name, {"server.address": self._at})
        self._failed = False

    def answered(self, transport: str) -> None:
        """The reply comes over the transport of that name, if it comes."""
        if self.is_recorded and self._ended:
            self._at = _address(transport)
            self.span.set_attributes({"server.address": self._at, "mixserve.transport": transport})

    def hedges(self, transport: str) -> None:
        """The request goes to another replica as well."""
        if self.is_recorded and self._ended:
            self.span.add_event("hedge", {"server.address": _address(transport)})

    def failed(self, transport: str, error: BaseException) -> None:
        """A try has failed."""
        if self.is_recorded and self._ended:
            self._at, self._failed = _address(transport), True
            about = {"server.address": self._at, "error.type": type(error).__name__, "error.message": _said(error)}
            self.span.add_event("failed", about)

    def end(self, error: BaseException | None = None) -> None:
        """The request is answered, given up, or has failed. Only the first call counts, of whichever thread."""
        try:
            self._ended.pop()
        except IndexError:
            return
        if error is not None:
            mark_error(self.span, error)
        self.span.end()


class Spans:
    """Makes spans with the user's tracer. Thread-safe."""

    def __init__(self, tracer: trace.Tracer):
        self._tracer = tracer

    def next(self) -> Current:
        """The span of one batch that a trainer takes."""
        return Current(self._tracer.start_span("mixserve.next"))

    def took(
        self,
        span: trace.Span,
        mixture: str | None,
        position: int | None,
        rows: int,
        wait_s: float,
        requests: Iterable[RequestSpan | None],
    ) -> None:
        """The trainer has its batch, of these `rows` from `position` on, after `wait_s` seconds.

        `requests` are those that brought it, if they were made before the trainer came for it.
        """
        about: dict[str, Value] = {"mixserve.rows": rows, "mixserve.wait_s": wait_s}
        if mixture is not None:
            about["mixserve.mixture"] = mixture
        if position is not None:
            about["mixserve.position"] = position
        is_prefetched = False
        for request in requests:
            is_prefetched = True
            if request is not None:
                span.add_link(request.span.get_span_context())
        span.set_attributes(about | {"mixserve.prefetched": is_prefetched})

    def request(self, method: str, mixture: str = "", within: otel.Context | None = None) -> RequestSpan:
        """The span of one request, made `within` the place that `here` returned (None: that of this thread)."""
        about = call_attributes(method, mixture)
        return RequestSpan(
            self._tracer.start_span("mixserve.request", within, kind=trace.SpanKind.CLIENT, attributes=about)
        )

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What names the span that this thread is in, as metadata of a call whose message has no room for it."""
        here = trace.get_current_span().get_span_context()
        return ((TRACEPARENT, format_traceparent(here)),) if here.is_valid else ()

    def here(self) -> otel.Context:
        """The spans that this thread is in."""
        return otel.get_current()

    def carried(self, task: Callable[[], T]) -> Callable[[], T]:
        """`task`, within the spans of this thread, in whichever thread it runs."""
        here = otel.get_current()

        def run() -> T:
            token = otel.attach(here)
            try:
                return task()
            finally:
                otel.detach(token)

        return run


def _said(error: BaseException) -> str:
    try:
        return hide_tokens(str(error))[:_SHOWN]
    except BaseException:  # in a user's __str__
        return type(error).__name__


def _address(transport: str) -> str:
    found = _GRPC.search(transport)
    return transport if found is None else found[1]
