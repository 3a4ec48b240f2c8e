"""Moves streams of batches over bulk channels, and all else over gRPC."""

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from weakref import WeakSet

from mixserve_client.errors import (
    CorruptReply,
    MixserveError,
    ServerFault,
    Unauthenticated,
    Unavailable,
)
from mixserve_client.limited_log import LimitedLog
from mixserve_client.metrics.requests import RequestFigures
from mixserve_client.schema.server import ServerDescription
from mixserve_client.transport.base import Interrupted, Lane, ReadMode, Replies, Transport
from mixserve_client.transport.buffers import MemoryPool
from mixserve_client.transport.bulk_connection import BulkConnection
from mixserve_client.transport.connecting import connect_tcp
from mixserve_client.transport.credentials import Credentials
from mixserve_client.transport.endpoints import Endpoint, endpoint_of
from mixserve_client.transport.pipes import Pipe, PlainPipe, TlsPipe
from mixserve_client.wire import methods
from mixserve_client.wire.server import decode_server

_logger = logging.getLogger("mixserve_client")

OPEN_S = 1.0  # to open a channel, with what it takes to get a token
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 60.0
_MOST_IDLE = 8

OpenSocket = Callable[[float], socket.socket]


class BulkTransport:
    """Adds bulk channels to `inner`, of the gRPC target `target`; where none can be opened, uses `inner`.

    The first stream tries. After a failure another one tries again, after a delay that doubles up to 60 s, until a
    channel has carried something.
    """

    def __init__(
        self,
        inner: Transport,
        target: str,
        credentials: Credentials,
        open_s: float = OPEN_S,
        *,
        checksum: bool = False,
        figures: RequestFigures | None = None,
    ):
        """Gives up to open a channel after `open_s` seconds. `checksum`: frames are checked too, if the server can.

        Counts connections in `figures`.
        """
        self._figures = RequestFigures() if figures is None else figures
        self._inner = inner
        self._open_s = open_s
        self._checksum = checksum
        self._endpoint = endpoint_of(target)
        self._credentials = credentials
        self._memory = MemoryPool()
        self._through: OpenSocket | None = None
        self._idle = deque[_Connection]()
        self._made = WeakSet[_Connection]()
        self._way = ""  # that the last channel went; empty if it could not be opened
        self._tries = 0  # since a channel was opened
        self._next_try_at = 0.0
        self._last_logged = ""
        self._not_opened = LimitedLog(_logger)
        self._closed = False
        # Reentrant: the garbage collector may close the client in a thread that holds it.
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        return f"{self._way}, {self._inner.name}" if self._way and self._through is None else self._inner.name

    def open_through(self, open_socket: OpenSocket | None) -> None:
        """Open channels through a socket that is open already (None: over TCP). `open_socket(until)` raises OSError."""
        if open_socket == self._through:
            return
        with self._lock:
            self._through, self._tries, self._next_try_at, self._way = open_socket, 0, 0.0, ""
            while self._idle:
                self._idle.pop().close()

    def read_mode(self, method: str, request: bytes) -> ReadMode:  # noqa: ARG002
        return ReadMode.ON_DEMAND if self._way and not self._closed else ReadMode.BACKGROUND

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        return self._inner.call(method, request, timeout_s)

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,
        reply_bytes: int,
        lane: Lane | None = None,
    ) -> Replies:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        connection = self._connection(lane, timeout_s)
        if connection is None:
            if lane is not None:  # gRPC cannot limit a wait for a reply later
                raise Interrupted("there is no bulk channel now: read the stream in another way")
            timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            return self._inner.stream(method, request, timeout_s, replies, reply_bytes, lane)
        if lane is not None and not connection.has_room(len(request)):
            raise Interrupted("so many streams cannot be asked for ahead: read this one in another way")
        found = connection.open(method, request)
        found.wait_until(deadline)
        if lane is None:
            found.on_end = partial(self._put_back, connection)
        return found

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._idle.clear()
            made = list(self._made)
        for connection in made:
            connection.close()
        self._inner.close()

    def _connection(self, lane: Lane | None, timeout_s: float | None) -> "_Connection | None":
        """The lane's connection, an idle one or a new one. None if there is none, or the client is closed."""
        known = None if lane is None else lane.connections.get(self)
        if known is not None:
            if not known.is_usable:
                known.close()
            elif known.server.knows_us:
                return known  # otherwise its streams are read to their ends, and the others have one of their own
        found = None
        with self._lock:
            if self._closed:
                return None  # `inner` says what is wrong
            while found is None and self._idle:
                taken = self._idle.pop()
                if taken.is_usable and taken.server.knows_us:
                    found = taken
                else:
                    taken.close()
            if found is None and time.monotonic() < self._next_try_at:
                return None
        found = found or self._open(
            time.monotonic() + (self._open_s if timeout_s is None else min(timeout_s / 2, self._open_s))
        )
        if lane is not None and found is not None:
            lane.connections[self] = found
        return found

    def _put_back(self, connection: "_Connection") -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _MOST_IDLE and connection.is_usable:
                self._idle.append(connection)

    def _open(self, until: float) -> "_Connection | None":
        """A new channel, None if there is none. Raises what a call raises, but for what takes too long."""
        through, server = self._through, _Server(self._inner, self._credentials, self._note_reply, self._note_loss)
        try:
            found = self._ask(until)
            offer = found.bulk
            if offer is None:
                return self._give_up("the server offers none", logging.INFO)
            if through is not None:
                pipe: Pipe = PlainPipe(through(until))
                name = way = "the socket of shared memory"
            else:
                if self._endpoint is None or not offer.port:
                    return self._give_up("the server offers none over TCP", logging.INFO)
                at = Endpoint(offer.host or self._endpoint.host, offer.port)
                where = f"[{at.host}]:{at.port}" if ":" in at.host else f"{at.host}:{at.port}"
                pipe, name, way = self._connect(at, until), f"bulk channel {where}", f"bulk {where}"
            is_checked = self._checksum and found.checksums
            made = BulkConnection(pipe, name, offer.token, until, self._memory, server, is_checked)
        except Unavailable:  # `inner` would say the same, and the first answer of a starting server must decide
            raise
        except (OSError, CorruptReply) as error:
            return self._give_up(str(error), logging.WARNING)
        with self._lock:
            self._way, self._next_try_at = way, 0.0
            self._made.add(made)
            is_late = self._closed
        self._figures.note_connection("bulk")
        if is_late:
            made.close()
        return made

    def _ask(self, until: float) -> ServerDescription:
        try:
            return decode_server(self._inner.call(methods.GET_SERVER, b"", _remaining_s(until)))
        except ServerFault:  # the answer of a server that is older than GetServer
            return ServerDescription()

    def _connect(self, at: Endpoint, until: float) -> Pipe:
        assert self._endpoint is not None
        context = self._credentials.context()
        made = connect_tcp(at, until)
        try:
            if context is None:
                return PlainPipe(made)
            made.settimeout(_remaining_s(until))
            # The name that gRPC checks, wherever the server says that the channel is.
            return TlsPipe(context.wrap_socket(made, server_hostname=self._credentials.server or self._endpoint.host))
        except BaseException:
            made.close()
            raise

    def _note_reply(self) -> None:
        self._tries = 0

    def _note_loss(self, error: OSError) -> None:
        self._give_up(f"a channel was opened, and ended before a reply: {error}", logging.WARNING)

    def _give_up(self, reason: str, level: int) -> None:
        """Use gRPC for a while."""
        with self._lock:
            self._way = ""
            delay_s = _FIRST_DELAY_S * 2 ** min(self._tries, 16)
            self._next_try_at = time.monotonic() + min(delay_s, _LONGEST_DELAY_S)
            self._tries += 1
            is_new, self._last_logged = reason != self._last_logged, reason
        if is_new and not self._closed:
            # A server may say another thing each time.
            log = self._not_opened.info if level == logging.INFO else self._not_opened.warn
            log("%s: batches come over gRPC, not over a bulk channel: %s", self._inner.name, reason)


class _Server:
    """The server at the other end of a channel, and the credentials with which it was opened."""

    def __init__(
        self,
        inner: Transport,
        credentials: Credentials,
        note_reply: Callable[[], None],
        note_loss: Callable[[OSError], None],
    ):
        self._inner = inner
        self._credentials = credentials
        self._sent = credentials.metadata()
        self._files = credentials.channel_version()
        self.note_reply, self.note_loss = note_reply, note_loss

    @property
    def knows_us(self) -> bool:
        """Whether the credentials are still the same."""
        return self._files == self._credentials.channel_version() and self._sent == self._credentials.metadata()

    def ask(self, timeout_s: float) -> Replies:
        # As a stream of one reply, which can be cancelled.
        return self._inner.stream(methods.LIST_MIXTURES, b"", timeout_s, 1, 0)

    def convert(self, error: MixserveError) -> MixserveError:
        if isinstance(error, Unauthenticated) and self._credentials.has_another_token(self._sent):
            return Unavailable(
                f"the token has changed since the channel was opened, and the old one is refused: {error}"
            )
        return error


_Connection = BulkConnection[_Server]


def _remaining_s(until: float) -> float:
    """Raises TimeoutError."""
    remaining_s = until - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError("it took too long")
    return remaining_s
