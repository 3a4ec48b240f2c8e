"""Adds checksums to requests, and checks those of the replies."""

import time
from collections.abc import Iterator
from itertools import count

from mixserve_client.errors import CorruptReply, InvalidRequest, MixserveError
from mixserve_client.transport.base import Lane, ReadMode, Replies, Reply, Transport
from mixserve_client.wire import methods
from mixserve_client.wire.checksum import ReplyTo, open_reply, require_crc32c, seal_request
from mixserve_client.wire.server import decode_server

_ASK_S = 1.0


class ChecksumTransport:
    """Adds checksums to what goes over `inner`: a reply that was damaged, or answers another request, is CorruptReply.

    All calls have them but GetServer, which tells whether the server can compute checksums, and whose answer the other
    transports use before they trust it. Replies have them before shared memory is looked at: what a server writes to
    the memory of this host has none.
    """

    def __init__(self, inner: Transport):
        """Raises InvalidRequest if google-crc32c is missing."""
        require_crc32c()
        self._inner = inner

    @property
    def name(self) -> str:
        return self._inner.name

    def read_mode(self, method: str, request: bytes) -> ReadMode:
        return self._inner.read_mode(method, request)

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        if method == methods.GET_SERVER:
            return self._inner.call(method, request, timeout_s)
        deadline = _deadline_in(timeout_s)
        sealed, checksum = seal_request(request)
        reply = self._inner.call(method, sealed, timeout_s)
        try:
            return bytes(open_reply(reply, ReplyTo(checksum, 0)))
        except CorruptReply:
            self.check_server(deadline)
            raise

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,
        reply_bytes: int,
        lane: Lane | None = None,
    ) -> "_Replies":
        deadline = _deadline_in(timeout_s)
        sealed, checksum = seal_request(request)
        found = self._inner.stream(method, sealed, timeout_s, replies, reply_bytes, lane)
        return _Replies(self, found, checksum, deadline)

    def close(self) -> None:
        self._inner.close()

    def check_server(self, deadline: float | None) -> None:
        """Raises InvalidRequest if the server describes itself, in a second, as one that knows no checksums."""
        timeout_s = _ASK_S if deadline is None else min(_ASK_S, deadline - time.monotonic())
        if timeout_s <= 0:
            return
        try:
            server = decode_server(self._inner.call(methods.GET_SERVER, b"", timeout_s))
        except MixserveError:  # also a ServerFault: gRPC may have met damaged bytes as well
            return
        if not server.checksums:
            raise InvalidRequest(
                f"{self._inner.name}: this server is older than checksums: update it, or connect with checksum=False"
            )


class _Replies:
    def __init__(self, transport: ChecksumTransport, inner: Replies, request: int, deadline: float | None):
        self._transport = transport
        self._inner = inner
        self._request = request
        self._deadline = deadline

    def wait_until(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._inner.wait_until(deadline)

    def __iter__(self) -> Iterator[Reply]:
        numbers = count()  # not `enumerate`, which keeps the last reply
        for reply in self._inner:
            try:
                came = [open_reply(reply, ReplyTo(self._request, next(numbers)))]
            except CorruptReply:
                self._inner.cancel()
                self._transport.check_server(self._deadline)
                raise
            del reply
            yield came.pop()  # this frame must not keep its memory while it waits to go on

    def cancel(self) -> None:
        self._inner.cancel()

    def abandon(self) -> None:
        self._inner.abandon()


def _deadline_in(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
