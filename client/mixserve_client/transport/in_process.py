"""Requests move by a function call to a servicer in this process: everything but the socket."""

from typing import Protocol

from mixserve_client.errors import Unavailable


class Servicer(Protocol):
    """Bytes in, bytes out: what `mixserve.servicer` provides."""

    def handle(self, method: str, request: bytes) -> bytes:
        """The reply to `request`; raises MixserveError."""
        ...


class InProcessTransport:
    """Calls the servicer directly; `timeout_s` has nothing to wait for here and is not looked at."""

    name = "in-process"

    def __init__(self, servicer: Servicer):
        self._servicer: Servicer | None = servicer

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:  # noqa: ARG002
        if self._servicer is None:
            raise Unavailable("this client is closed; make another one with local_client(...)")
        return self._servicer.handle(method, request)

    def close(self) -> None:
        self._servicer = None
