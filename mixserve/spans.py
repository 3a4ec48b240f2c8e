"""The spans of a server, by OpenTelemetry: one for each call, and in it those of each reply and of what makes it.

Only this module knows OpenTelemetry here; `tracing` imports it when there is something to trace. The span that a thread
is in is OpenTelemetry's current one.
"""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from contextvars import Token
from typing import Any, ParamSpec, TypeVar

from opentelemetry import context as otel
from opentelemetry import trace

from mixserve_client.schema.requests import Sender
from mixserve_client.spans import (
    TRACEPARENT,
    Value,
    call_attributes,
    configured_tracer,
    mark_error,
    parse_traceparent,
)

__all__ = ["CallSpan", "ReplySpan", "Spans", "configured_tracer"]

P = ParamSpec("P")
T = TypeVar("T")

_CALL = otel.create_key("mixserve-call")
_MOST_CHARACTERS = 100  # of a mixture's name as a request has it, which may be any text


class Spans:
    """Makes spans with the user's tracer. Thread-safe."""

    def __init__(self, tracer: trace.Tracer):
        self._tracer = tracer

    def call(self, method: str) -> "CallSpan":
        """The span of a call of `method`, a path, that has come now."""
        return CallSpan(self._tracer, method)

    def read(self, mixture: str, sender: Sender, position: int, rows: int) -> None:
        """The request of the call that this thread answers has been read: for so many `rows` from `position` on."""
        call = otel.get_value(_CALL)
        if isinstance(call, CallSpan):
            call.read(mixture, sender, position, rows)

    def reply(self, position: int, rows: int) -> "ReplySpan | None":
        """The span of a reply of so many `rows`, which begins now; None if the call is not recorded."""
        call = otel.get_value(_CALL)
        if not isinstance(call, CallSpan) or not trace.get_current_span().is_recording():
            return None
        about = {"mixserve.position": position, "mixserve.rows": rows}
        made = ReplySpan(self._tracer, self._tracer.start_span("reply", attributes=about))
        call.replies = [*(one for one in call.replies if not one.has_ended), made]
        return made

    def if_recorded(self) -> "Spans | None":
        """This, if what this thread does is recorded: else there is nothing to note about its steps."""
        return self if trace.get_current_span().is_recording() else None

    def note_stage(self, name: str, seconds: float) -> None:
        """A step that has taken so long ends now."""
        _note(self._tracer, name, seconds)

    def stage(self, name: str) -> "_Stage":
        """A context in which the thread is in a step."""
        return _Stage(self._tracer, name)

    def source(self, name: str, records: int) -> "_Stage":
        """A context in which the thread is inside the code of a source, which reads so many records."""
        return _Stage(self._tracer, f"source {name}", {"mixserve.source": name, "mixserve.records": records})

    def within_headers(self, metadata: Iterable[tuple[str, str | bytes]], task: Callable[[], T]) -> T:
        """Run `task` within the span that the metadata of a call name, if they name one."""
        text = next((value for key, value in metadata if key == TRACEPARENT), "")
        parent = parse_traceparent(text) if isinstance(text, str) else None
        return task() if parent is None else _within(trace.set_span_in_context(_remote(parent)), task)

    def here(self) -> otel.Context:
        """The spans that this thread is in, for another thread that does a part of the work."""
        return otel.get_current()

    def within(self, here: otel.Context, task: Callable[[], T]) -> T:
        """Run `task` within the spans that `here` returned in another thread."""
        return _within(here, task)


class CallSpan:
    """The span of a call: a context around it, or `around` the replies of a stream.

    It begins with the call. But only the request says to which span of the client it belongs, so that it is made when
    that has been read, or at the end if that has failed.
    """

    __slots__ = ("_began", "_context", "_method", "_span", "_token", "_tracer", "replies")

    def __init__(self, tracer: trace.Tracer, method: str):
        self._tracer, self._method = tracer, method
        self._began = time.time_ns()
        self._span: trace.Span | None = None
        self._context = otel.set_value(_CALL, self)
        self._token: Token[otel.Context] | None = None
        self.replies = list[ReplySpan]()  # the last ones, which may not have ended

    def __enter__(self) -> None:
        self._token = otel.attach(self._context)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        assert self._token is not None
        otel.detach(self._token)
        self._end(error)

    def around(self, replies: Generator[T]) -> Generator[T]:
        """`replies`, each made within the span, which ends with them."""
        ended: BaseException | None = None
        is_whole = False
        try:
            with closing(replies):
                while True:
                    came = [reply for reply in (_within(self._context, next, replies, None),) if reply is not None]
                    if not came:
                        is_whole = True
                        return
                    yield came.pop()  # this frame must not keep its memory while it is sent
        except GeneratorExit:
            raise
        except BaseException as error:
            ended = error
            raise
        finally:
            if not is_whole and ended is None and self._span is not None:  # by its reader, or since others wait
                self._span.set_attribute("mixserve.ended_early", True)
            self._end(ended)
            del ended  # its traceback leads to this frame

    def read(self, mixture: str, sender: Sender, position: int, rows: int) -> None:
        """As `Spans.read`, in the thread that answers the call."""
        if self._span is not None:
            return
        parent = parse_traceparent(sender.trace)
        # A request that names no span belongs to the one that its metadata name, or in process its caller is in.
        here = self._context if parent is None else trace.set_span_in_context(_remote(parent), self._context)
        span = self._span = self._begin(here, mixture)
        if span.is_recording():
            about: dict[str, Value] = {"mixserve.position": position, "mixserve.rows": rows}
            if sender.client:
                about["mixserve.client"] = sender.client
            span.set_attributes(about)
        self._context = trace.set_span_in_context(span, self._context)
        otel.attach(self._context)  # until the end of the block that this thread is in, which restores what was before

    def _begin(self, context: otel.Context, mixture: str = "") -> trace.Span:
        return self._tracer.start_span(
            f"mixserve.{self._method.rpartition('/')[2]}",
            context,
            kind=trace.SpanKind.SERVER,
            attributes=call_attributes(self._method, mixture[:_MOST_CHARACTERS]),
            start_time=self._began,
        )

    def _end(self, error: BaseException | None) -> None:
        for reply in self.replies:
            reply.end()
        span = self._begin(self._context) if self._span is None else self._span
        if error is not None:
            mark_error(span, error)
        span.end()


class ReplySpan:
    """The span of one reply of a stream: from its beginning until its reader wants the next one."""

    __slots__ = ("_context", "_span", "_tracer", "has_ended")

    def __init__(self, tracer: trace.Tracer, span: trace.Span):
        self._tracer, self._span = tracer, span
        self._context = trace.set_span_in_context(span)
        self.has_ended = False

    def run(self, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do a part of the work within the span, which ends with the error that this raises."""
        try:
            return _within(self._context, make, *args, **kwargs)
        except BaseException as error:
            self.end(error)
            raise

    def sent(self, seconds: float) -> None:
        """It took so long until its reader wanted the next one, or the stream ended."""
        if not self.has_ended:
            _within(self._context, _note, self._tracer, "send", seconds)
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        """The reply is sent, or will not be sent."""
        if not self.has_ended:
            self.has_ended = True
            if error is not None:
                mark_error(self._span, error)
            self._span.end()


class _Stage:
    """A span in the current one, if that is recorded; it becomes the current one."""

    __slots__ = ("_about", "_name", "_span", "_token", "_tracer")

    def __init__(self, tracer: trace.Tracer, name: str, about: dict[str, Value] | None = None):
        self._tracer, self._name, self._about = tracer, name, about
        self._span: trace.Span | None = None
        self._token: Token[otel.Context] | None = None

    def __enter__(self) -> "_Stage":
        if trace.get_current_span().is_recording():
            self._span = self._tracer.start_span(self._name, attributes=self._about)
            self._token = otel.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if self._span is None or self._token is None:
            return
        otel.detach(self._token)
        if error is not None:
            mark_error(self._span, error)
        self._span.end()

    def note_bytes(self, count: int) -> None:
        """The step has brought so many bytes."""
        if self._span is not None:
            self._span.set_attribute("mixserve.bytes", count)


def _note(tracer: trace.Tracer, name: str, seconds: float) -> None:
    if trace.get_current_span().is_recording():
        # The clock that has measured the step is another one. Counted from its end, it lies within the current span.
        now = time.time_ns()
        tracer.start_span(name, start_time=now - int(seconds * 1e9)).end(now)


def _within(context: otel.Context, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    token = otel.attach(context)
    try:
        return make(*args, **kwargs)
    finally:
        otel.detach(token)


def _remote(span: trace.SpanContext) -> Any:
    return trace.NonRecordingSpan(span)
