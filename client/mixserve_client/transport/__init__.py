"""The one seam of the client: a method's path and a request's bytes in, the reply's bytes out."""

from typing import Protocol


class Transport(Protocol):
    """A way to move a request to a servicer and its reply back."""

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

    def close(self) -> None:
        """End the calls under way and release what the transport holds; closing twice is closing once."""
        ...
