"""The interface of all transports: a method's path and a request's bytes in, replies' bytes out."""

import threading
from collections.abc import Iterator
from enum import Enum
from typing import Any, Protocol

from mixserve_client.errors import Unavailable

Reply = bytes | memoryview


class Interrupted(Unavailable):
    """The client itself ended the stream, or one of a server's processes did: send the request for the rest at once."""


class ReadMode(Enum):
    """How the replies of a stream come to whom reads them."""

    BACKGROUND = "background"  # a wait for one cannot be limited: a thread of its own should read them
    ON_DEMAND = "on demand"  # while some thread reads; a wait ends as `wait_until` says, and on `cancel`


class Lane:
    """Streams that are read one after another, in the order in which they were opened.

    A transport may send all of them over one connection, which it keeps here. Hold `opening` while you open one.
    """

    def __init__(self) -> None:
        self.opening = threading.Lock()
        self.connections: dict[object, Any] = {}  # by transport

    def close(self) -> None:
        """Close the connections: no stream will be read to its end."""
        for connection in list(self.connections.values()):
            connection.close()


class Replies(Protocol):
    """The replies of a stream, in order; safe to cancel from another thread."""

    def wait_until(self, deadline: float | None) -> None:
        """From now on, waiting for a reply ends at that time of `time.monotonic()`, with DeadlineExceeded.

        Streams in the mode BACKGROUND ignore this: they know only the `timeout_s` with which they began.
        """
        ...

    def __iter__(self) -> Iterator[Reply]:
        """Raises what `Transport.call` raises; may end before all requested rows have come."""
        ...

    def cancel(self) -> None:
        """End the stream; the iteration ends, or raises Unavailable."""
        ...

    def abandon(self) -> None:
        """As `cancel`, and end a wait for the next reply at once, whatever ends with it: the server may be lost."""
        ...


class Transport(Protocol):
    """Moves requests to a servicer, and its replies back; every thread may use it."""

    @property
    def name(self) -> str:
        """The text that `client.transport` shows."""
        ...

    def read_mode(self, method: str, request: bytes) -> ReadMode:
        """How the replies to a request would come if it was sent now. Does not wait."""
        ...

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        """The reply to `request`, sent to `method` (a path of `wire.methods`).

        Raises the error that the servicer raised, Unavailable if no servicer answers, and DeadlineExceeded after
        `timeout_s` seconds (None: no limit).
        """
        ...

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,
        reply_bytes: int,
        lane: Lane | None = None,
    ) -> Replies:
        """The replies to `request`: about `replies` of up to `reply_bytes` bytes each, or more and smaller ones.

        Sends the request now. With a `lane`, the replies may come after those of the lane's streams before it; raises
        Interrupted if they cannot come as `read_mode` says.
        """
        ...

    def close(self) -> None:
        """End the calls in flight and release what the transport holds; a second call does nothing."""
        ...
