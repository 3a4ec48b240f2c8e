"""Replies that gRPC holds until their readers take them: bounded, or one reader could fill the memory of the server."""

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import grpc

from mixserve_client.errors import Overloaded

_logger = logging.getLogger("mixserve")

_STALLED_S = 5.0
_RETRY_S = 0.2

Clock = Callable[[], float]


class _Reply(NamedTuple):
    since: float
    size: int


class UnreadReplies:
    """The replies of single calls that have not ended. Thread-safe.

    A stream waits until its reader takes each reply. The reply of a single call leaves its thread at once, and gRPC
    holds it: a client that reads nothing could ask for as many as it likes. gRPC also makes a copy, so that they take
    twice as much memory.
    """

    def __init__(self, most_bytes: int, clock: Clock = time.monotonic):
        self._most_bytes = most_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._bytes = 0
        self._by_peer: dict[str, dict[grpc.ServicerContext, _Reply]] = {}  # of each connection, the oldest first
        self._bytes_of: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        """How many bytes there are."""
        return self._bytes

    def check_room(self) -> None:
        """Make room for a reply: end calls that stalled, first of the connection with the most bytes.

        Raises Overloaded if there is no room. Call it before the reply is made.
        """
        if self._bytes < self._most_bytes:
            return
        ended: dict[grpc.ServicerContext, str] = {}
        with self._lock:
            while self._bytes >= self._most_bytes and (stalled := self._find_stalled()) is not None:
                context, peer = stalled
                self._remove(context, peer)
                ended[context] = peer
            has_room = self._bytes < self._most_bytes
        for context in ended:
            context.cancel()
        for peer in set(ended.values()):
            _logger.warning("%s takes no replies: ended calls of it, to make room for those of others", peer)
        if not has_room:
            raise Overloaded("readers have not taken the replies that the server holds for them; ask again", _RETRY_S)

    def add(self, context: grpc.ServicerContext, size: int) -> None:
        """A reply of `size` bytes is on its way. It counts until its call ends."""
        peer = context.peer()
        with self._lock:
            self._by_peer.setdefault(peer, {})[context] = _Reply(self._clock(), size)
            self._bytes_of[peer] = self._bytes_of.get(peer, 0) + size
            self._bytes += size

        def end() -> None:
            with self._lock:
                self._remove(context, peer)

        if not context.add_callback(end):  # the call has ended meanwhile
            end()

    def _find_stalled(self) -> tuple[grpc.ServicerContext, str] | None:
        """The oldest call of the connection with the most bytes, of those whose oldest has stalled."""
        before = self._clock() - _STALLED_S
        oldest = {peer: next(iter(replies.items())) for peer, replies in self._by_peer.items()}
        stalled = [peer for peer, (_, reply) in oldest.items() if reply.since <= before]
        peer = max(stalled, key=self._bytes_of.__getitem__, default=None)
        return None if peer is None else (oldest[peer][0], peer)

    def _remove(self, context: grpc.ServicerContext, peer: str) -> None:
        replies = self._by_peer.get(peer, {})
        reply = replies.pop(context, None)
        if reply is None:  # it was ended to make room
            return
        self._bytes -= reply.size
        self._bytes_of[peer] -= reply.size
        if not replies:
            del self._by_peer[peer], self._bytes_of[peer]
