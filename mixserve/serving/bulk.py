"""Bulk channels: plain connections over which streams of batches come faster than over gRPC."""

import itertools
import logging
import random
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from mixserve.access.certificates import Certificates
from mixserve.access.failures import host_of
from mixserve.access.peers import is_on_this_host
from mixserve.descriptors import connection_limit
from mixserve.serving.bulk_connection import Age, BulkConnection, Replies
from mixserve.serving.bulk_door import BulkDoor
from mixserve.serving.bulk_threads import STALLED_S, THREADS, BulkThreads
from mixserve.serving.first_request import REQUEST_TIMEOUT_S
from mixserve.serving.guard import Admission
from mixserve.serving.options import AGE_GRACE_S
from mixserve.serving.waiting_requests import WaitingRequests
from mixserve_client.limited_log import LimitedLog
from mixserve_client.schema.server import BulkOffer
from mixserve_client.transport.pipes import Pipe
from mixserve_client.wire.bulk import TOKEN_BYTES

_logger = logging.getLogger("mixserve")

_TOKEN_S = 30.0
_AGE_SPREAD = 0.1
_MOST_TOKENS, _MOST_TOKENS_OF_ONE = 16384, 1024


class BulkPeer:
    """The connection of a channel, for those who count what it has been sent: `key` is of no other one."""

    def __init__(self, key: str):
        self.key = key
        self.end: Callable[[], object] = _nothing


# The replies to a request to a method, for an admitted caller at a peer, over a connection; and who asks whether the
# caller still waits.
AnswerAdmitted = Callable[[str, Admission, str, bytes, BulkPeer, Callable[[], bool]], Replies]


class BulkChannels:
    """The bulk channels of a server, over TCP if it listens, and over sockets that `adopt` gets. Thread-safe."""

    def __init__(
        self,
        answer: AnswerAdmitted,
        threads: int = THREADS,
        max_age_s: float | None = None,
        *,
        grace_s: float = AGE_GRACE_S,
        stalled_s: float = STALLED_S,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
    ):
        """`threads` is the number of those that answer. A channel ends after about `max_age_s` (None: never), as soon
        as its client waits for nothing, and after `grace_s` more between two requests. Readers may take nothing for
        `stalled_s`, and a request that has come in part may rest for `request_timeout_s`."""
        self._answer = answer
        self._max_age_s, self._grace_s = max_age_s, grace_s
        self.requests = WaitingRequests()
        self._is_closed = False
        self._numbers = itertools.count(1)
        self._offers = _Offers()
        self._threads = BulkThreads(threads, stalled_s, request_timeout_s)
        self._door = BulkDoor(self._admit)
        self.refused = LimitedLog(_logger, "bulk_channels")
        self._unused = LimitedLog(_logger, "bulk_offers")

    def listen(self, host: str, port: int, certificates: Certificates | None) -> None:
        """Accept connections at `port` (0: one that is free) of `host`, with TLS if there are certificates.

        Raises OSError.
        """
        self._door.listen(host, port, certificates)

    @property
    def channels(self) -> int:
        """The number of open channels."""
        return len(self._threads)

    @property
    def port(self) -> int:
        """The port; 0 if there is none."""
        return self._door.port

    def start(self) -> None:
        """Begin to let clients in."""
        self._door.start()

    def adopt(self, connection: socket.socket) -> None:
        """Use a connected socket of a process of this user on this host."""
        self._door.let_in(connection)

    def offer(self, admission: Admission) -> BulkOffer | None:
        """An offer for that caller; None if there are too many channels, or offers that wait to be used."""
        if self._is_full():
            self.refused.warn(
                "there are %d bulk channels, as many as there may be: the batches of other clients come over gRPC. "
                "Close clients that are not used, raise the limit of open files, or add a server",
                most_channels(),
            )
            return None
        token = self._offers.add(admission)
        if token is None:
            self._unused.warn(
                "clients of %s asked for %d bulk channels within %g s without opening them, or all clients for %d: "
                "their batches come over gRPC. A firewall may keep them from the port of bulk channels; --no-bulk "
                "offers none",
                admission.identity.name,
                _MOST_TOKENS_OF_ONE,
                _TOKEN_S,
                _MOST_TOKENS,
            )
            return None
        return BulkOffer("", self.port, token)

    def close(self) -> None:
        """End all channels; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            self._door.close()
            self._threads.close()

    def _age(self) -> Age:
        if self._max_age_s is None:
            return Age()
        # As gRPC does: channels that were opened together must not all be opened again together.
        idle_at = time.monotonic() + self._max_age_s * random.uniform(1 - _AGE_SPREAD, 1 + _AGE_SPREAD)
        return Age(idle_at, idle_at + self._grace_s)

    def _is_full(self) -> bool:
        return len(self._threads) >= most_channels()

    def _admit(self, token: bytes, peer: str) -> Callable[[Pipe], None] | None:
        """What begins to answer whoever has the token. None if there is no such token, or too many have come."""
        admission = self._offers.take(token)
        if admission is None or self._is_full():  # there may be many more offers than channels
            return None
        # Not of this host: all its users share its addresses, and forwarded ports end there.
        if not is_on_this_host(peer) and self._threads.count_of(host_of(peer)) >= most_channels() // 2:
            self.refused.warn(
                "%s has half of all bulk channels, and gets no more: its batches come over gRPC. Close clients that "
                "are not used, or raise the limit of open files",
                host_of(peer),
            )
            return None
        connection = BulkPeer(f"{peer} (bulk channel {next(self._numbers)})")

        def answer(method: str, request: bytes, is_wanted: Callable[[], bool]) -> Replies:
            return self._answer(method, admission, peer, request, connection, is_wanted)

        def begin(pipe: Pipe) -> None:
            made = BulkConnection(pipe, peer, answer, self.requests, self._age())
            connection.end = made.shutdown
            self._threads.add(made)

        return begin


def most_channels() -> int:
    """How many channels there may be; one host may have half of them."""
    return connection_limit() // 2


class _Offer(NamedTuple):
    admission: Admission
    until: float


class _Offers:
    """Tokens that open one channel each, within 30 s."""

    def __init__(self) -> None:
        self._offers: OrderedDict[bytes, _Offer] = OrderedDict()  # the oldest first
        self._of_one: dict[bytes, int] = {}  # how many offers the holder of a token has, by its digest
        self._lock = threading.Lock()

    def add(self, admission: Admission) -> bytes | None:
        """A new token for that caller; None if there are too many."""
        token, now, owner = secrets.token_bytes(TOKEN_BYTES), time.monotonic(), admission.digest
        with self._lock:
            while self._offers and next(iter(self._offers.values())).until < now:
                self._count(self._offers.popitem(last=False)[1], -1)
            if len(self._offers) >= _MOST_TOKENS or (owner and self._of_one.get(owner, 0) >= _MOST_TOKENS_OF_ONE):
                return None
            offer = self._offers[token] = _Offer(admission, now + _TOKEN_S)
            self._count(offer, 1)
            return token

    def take(self, token: bytes) -> Admission | None:
        """Whom the token was made for, once."""
        # A look-up by hash, not a comparison in constant time: whoever guesses 32 random bytes byte by byte would have
        # to know their hash under this process's secret.
        with self._lock:
            offer = self._offers.pop(token, None)
            if offer is None:
                return None
            self._count(offer, -1)
        return offer.admission if offer.until >= time.monotonic() else None

    def _count(self, offer: _Offer, by: int) -> None:
        owner = offer.admission.digest
        count = self._of_one.get(owner, 0) + by
        if count:
            self._of_one[owner] = count
        else:
            self._of_one.pop(owner, None)


def _nothing() -> None:
    pass
