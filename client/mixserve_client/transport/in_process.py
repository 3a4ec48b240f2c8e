"""Requests move by a function call to a servicer in this process: everything but the socket."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Protocol

from mixserve_client.errors import Unavailable


class Servicer(Protocol):
    """Bytes in, bytes out: what `mixserve.servicer` provides."""

    def handle(self, method: str, request: bytes) -> bytes:
        """The reply to `request`; raises MixserveError."""
        ...

    def stream(self, method: str, request: bytes) -> Generator[bytes]:
        """The replies to `request`; the iteration raises MixserveError."""
        ...


class InProcessTransport:
    """Calls the servicer directly; `timeout_s` has nothing to wait for here and is not looked at."""

    name = "in-process"

    def __init__(self, servicer: Servicer, on_close: Callable[[], None] = lambda: None):
        self._servicer: Servicer | None = servicer
        self._on_close = on_close

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:  # noqa: ARG002
        return self._require_open().handle(method, request)

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,  # noqa: ARG002
        replies: int,  # noqa: ARG002
        reply_bytes: int,  # noqa: ARG002
    ) -> "_Replies":
        return _Replies(self._require_open().stream(method, request))

    def close(self) -> None:
        self._servicer = None
        self._on_close()

    def _require_open(self) -> Servicer:
        if self._servicer is None:
            raise Unavailable("this client is closed; make another one with local_client(...)")
        return self._servicer


class _Replies:
    def __init__(self, replies: Generator[bytes]):
        self._replies = replies
        self._cancelled = False

    def __iter__(self) -> Iterator[bytes]:
        with closing(self._replies):  # else it would keep what it holds for as long as somebody has this
            for reply in self._replies:
                if self._cancelled:
                    return
                yield reply

    def cancel(self) -> None:
        self._cancelled = True
