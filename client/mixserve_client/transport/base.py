"""The interface of all transports: a method's path and a request's bytes in, replies' bytes out."""

from collections.abc import Iterator
from typing import Protocol

from mixserve_client.errors import Unavailable

Reply = bytes | memoryview


class Interrupted(Unavailable):
    """The client itself ended the stream, and no server failed: send the request for the rest at once."""


class Replies(Protocol):
    """The replies of a stream, in order; safe to cancel from another thread."""

    def __iter__(self) -> Iterator[Reply]:
        """Raises what `Transport.call` raises; may end before all requested rows have come."""
        ...

    def cancel(self) -> None:
        """End the stream; the iteration ends, or raises Unavailable."""
        ...


class Transport(Protocol):
    """Moves requests to a servicer, and its replies back; every thread may use it."""

    @property
    def name(self) -> str:
        """The text that `client.transport` shows."""
        ...

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        """The reply to `request`, sent to `method` (a path of `wire.methods`).

        Raises the error that the servicer raised, Unavailable if no servicer answers, and DeadlineExceeded after
        `timeout_s` seconds (None: no limit).
        """
        ...

    def stream(self, method: str, request: bytes, timeout_s: float | None, replies: int, reply_bytes: int) -> Replies:
        """The replies to `request`: about `replies` of up to `reply_bytes` bytes each, or more and smaller ones."""
        ...

    def close(self) -> None:
        """End the calls in flight and release what the transport holds; a second call does nothing."""
        ...
