"""The span of a stream's requests: from the first of them until all rows have come."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mixserve_client.spans import RequestSpan, Spans

T = TypeVar("T")


class RequestTrace:
    """One span for all requests of a stream, which belongs to the span that this was made in, whichever thread sends.

    One thread at a time reads the stream; any may call `end`.
    """

    def __init__(self, spans: "Spans", method: str, mixture: str):
        self._spans = spans
        self._about = method, mixture
        self._within = spans.here()
        self.request: RequestSpan | None = None  # since the first request

    def span(self) -> "RequestSpan":
        """The span; begins with the first call."""
        if self.request is None:
            self.request = self._spans.request(*self._about, self._within)
        return self.request

    def around(self, replies: Iterator[T], is_done: Callable[[], bool]) -> Iterator[T]:
        """`replies`; the span ends with them, or when all rows have come, which `is_done` says."""
        try:
            for found in replies:
                # Not with the stream: its end comes after the rows, and is read later, with the next stream's.
                if self.request is not None and self.request.is_recorded and is_done():
                    self.request.end()
                came = [found]
                del found
                yield came.pop()  # this frame must not keep its memory while it waits to go on
        except GeneratorExit:
            raise
        except BaseException as error:
            self.end(error)
            raise
        finally:
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        """The stream has ended, with `error` if it failed."""
        if self.request is not None:
            self.request.end(error)
