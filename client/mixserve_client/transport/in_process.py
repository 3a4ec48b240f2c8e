"""Passes requests to a servicer in this process by a function call: everything but the socket is the same."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Protocol

from mixserve_client.errors import Unavailable
from mixserve_client.transport.base import Lane, ReadMode, Reply


class Servicer(Protocol):
    """Bytes in, bytes out: the part of `mixserve.servicer` that a transport calls."""

    def handle(self, method: str, request: bytes) -> bytes:
        """The reply to `request`. Raises MixserveError."""
        ...

    def stream(self, method: str, request: bytes) -> Generator[Reply]:
        """The replies to `request`; the iteration raises MixserveError."""
        ...

    def copies_rows(self, method: str, request: bytes) -> bool:
        """Whether each reply to `request` is a copy of rows in memory, which never waits."""
        ...


class InProcessTransport:
    """Calls the servicer directly in the caller's thread, and ignores `timeout_s`."""

    name = "in-process"

    def __init__(self, servicer: Servicer, on_close: Callable[[], None] = lambda: None):
        self._servicer: Servicer | None = servicer
        self._on_close = on_close

    def read_mode(self, method: str, request: bytes) -> ReadMode:
        # A copy of rows in memory takes no longer than the hand-off of its result from another thread.
        copies = self._servicer is not None and self._servicer.copies_rows(method, request)
        return ReadMode.ON_DEMAND if copies else ReadMode.BACKGROUND

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:  # noqa: ARG002
        return self._require_open().handle(method, request)

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,  # noqa: ARG002
        replies: int,  # noqa: ARG002
        reply_bytes: int,  # noqa: ARG002
        lane: Lane | None = None,  # noqa: ARG002
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
    def __init__(self, replies: Generator[Reply]):
        self._replies = replies
        self._cancelled = False

    def __iter__(self) -> Iterator[Reply]:
        with closing(self._replies):  # else it would keep its batches for as long as a reference to it exists
            for reply in self._replies:
                if self._cancelled:
                    return
                yield reply

    def wait_until(self, deadline: float | None) -> None:
        pass  # a call cannot be interrupted

    def cancel(self) -> None:
        self._cancelled = True

    def abandon(self) -> None:
        self.cancel()
