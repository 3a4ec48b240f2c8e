"""The one seam of the client: a method's path and a request's bytes in, replies' bytes out."""

from collections.abc import Iterator
from typing import Protocol

from mixserve_client.errors import Unavailable

Reply = bytes | memoryview


class Interrupted(Unavailable):
    """A stream had to end, through no fault of the server's: ask again at once."""


class Replies(Protocol):
    """The replies of a stream, in order; safe to cancel from another thread."""

    def __iter__(self) -> Iterator[Reply]:
        """Raises what `Transport.call` raises; may end before everything has come."""
        ...

    def cancel(self) -> None:
        """End the stream; the iteration ends, or raises Unavailable."""
        ...


class Transport(Protocol):
    """A way to move a request to a servicer and its replies back."""

    @property
    def name(self) -> str:
        """What `client.transport` shows."""
        ...

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        """The reply to `request`, sent to `method` (a path of `wire.methods`).

        Raises the error that the servicer raised, Unavailable where no servicer answers, and DeadlineExceeded after
        `timeout_s` seconds (None: no limit).
        """
        ...

    def stream(self, method: str, request: bytes, timeout_s: float | None, replies: int, reply_bytes: int) -> Replies:
        """The replies to `request`: up to `replies` batches of up to `reply_bytes` bytes each, or more smaller ones."""
        ...

    def close(self) -> None:
        """End the calls under way and release what the transport holds; closing twice is closing once."""
        ...
