"""The other ends of bulk channels, over raw sockets: clients that say anything, and servers that answer anything."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from mixserve import MixDataSourcesNode, MixServer
from mixserve.servicer import Services
from mixserve_client import MixClient
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.schema.server import BulkOffer, ServerDescription
from mixserve_client.wire import methods
from mixserve_client.wire.bulk import HEADER_BYTES, HELLO, WELCOME, Header, Kind, decode_header, encode_bulk_request
from mixserve_client.wire.request import encode_stream_request
from mixserve_client.wire.server import decode_server, encode_server
from tests.hostile import Answers, hostile_server

DEADLINE_S = 30
SIZE = 8
TOKEN = bytes(range(32))


def until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The result of `condition` as soon as it is true."""
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)
    return found


def header(kind: int, stream: int, length: int = 0, flags: int = 0, reserved: int = 0) -> bytes:
    """Any header, also one that no end of ours would send."""
    return struct.pack("<BBHIQ", kind, flags, reserved, stream, length)


def request(stream: int, count: int = 1, start: int = 0, key: int = 3) -> bytes:
    """The frame that requests `count` batches of 8 rows, each in its own reply."""
    wanted = StreamRequest(BatchRequest("train", start, SIZE, key_words(key)), SIZE, count, SIZE)
    return encode_bulk_request(stream, methods.STREAM_BATCHES, encode_stream_request(wanted))


def offer_of(server: MixServer) -> BulkOffer:
    """An offer of a running server."""
    with MixClient.connect(server.address, shared_memory=False, bulk=False) as client:
        found = decode_server(client._caller.call(methods.GET_SERVER, b"")).bulk
    assert found is not None
    return found


def tcp(port: int) -> socket.socket:
    """A connection to a port of bulk channels, which has said nothing."""
    made = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    made.settimeout(DEADLINE_S)
    return made


@contextmanager
def channel(server: MixServer) -> Iterator[socket.socket]:
    """A bulk channel that was let in."""
    offer = offer_of(server)
    with closing(tcp(offer.port)) as made:
        made.sendall(HELLO + offer.token)
        assert exactly(made, len(WELCOME)) == WELCOME
        yield made


def exactly(connection: socket.socket, count: int) -> bytes:
    """The next `count` bytes. Raises ConnectionError at the end."""
    found = b""
    while len(found) < count:
        came = connection.recv(count - len(found))
        if not came:
            raise ConnectionError(f"it ended after {len(found)} of {count} bytes")
        found += came
    return found


def frame(connection: socket.socket) -> tuple[Header, bytes]:
    """The next frame."""
    found = decode_header(exactly(connection, HEADER_BYTES))
    return found, exactly(connection, found.length)


def ends(connection: socket.socket) -> bool:
    """Whether the peer ends the connection, whatever it sends before."""
    with suppress(ConnectionError):
        while connection.recv(1 << 20):
            pass
    return True


class HostileBulk:
    """A server whose gRPC calls are right, and whose bulk channels are `behave(connection)`, in a thread each."""

    def __init__(self, node: MixDataSourcesNode, behave: Callable[[socket.socket], None]):
        self.behave = behave
        self.services = Services({"train": node})
        self.streams = 0  # over gRPC
        self.hook: Callable[[str, bytes], Iterator[bytes]] | None = None  # answers in its place
        self.connections = list[socket.socket]()
        self.failures = list[BaseException]()
        self.offer = BulkOffer("", 0, TOKEN)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._threads = list[threading.Thread]()
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def port(self) -> int:
        return self._listening.getsockname()[1]

    def answer(self, method: str, request: bytes) -> Iterator[bytes]:
        """The answers of gRPC."""
        if method == methods.GET_SERVER:
            offer = self.offer if self.offer.port else BulkOffer(self.offer.host, self.port, self.offer.token)
            return iter([encode_server(ServerDescription("", offer))])
        if method in (methods.STREAM_BATCHES, methods.STREAM_POSITIONS):
            self.streams += 1
            return self.services.stream(method, request)
        return iter([self.services.handle(method, request)])

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for made in self.connections:
            with suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
        self._accepting.join(DEADLINE_S)
        for thread in (self._accepting, *self._threads):
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        self.services.close()

    def _accept(self) -> None:
        while True:
            try:
                made, _ = self._listening.accept()
            except OSError:
                return
            self.connections.append(made)
            # Those that have ended are forgotten: a test may make 100,000.
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(threading.Thread(target=self._run, args=(made,)))
            self._threads[-1].start()

    def _run(self, connection: socket.socket) -> None:
        with closing(connection):
            try:
                self.behave(connection)
            except OSError:
                pass
            except BaseException as error:
                self.failures.append(error)


@contextmanager
def hostile_bulk(
    node: MixDataSourcesNode, behave: Callable[[socket.socket], None]
) -> Iterator[tuple[str, HostileBulk]]:
    """The address of such a server, and the server."""
    made = HostileBulk(node, behave)
    try:
        with hostile_server(Answers(lambda method, data: (made.hook or made.answer)(method, data))) as address:
            yield address, made
    finally:
        made.close()
    assert made.failures == []


def let_in(connection: socket.socket) -> None:
    """Do as a server does at the beginning."""
    assert exactly(connection, len(HELLO) + len(TOKEN)) == HELLO + TOKEN
    connection.sendall(WELCOME)


def next_request(connection: socket.socket) -> Header:
    """The next request of a client."""
    found, _ = frame(connection)
    assert found.kind == Kind.REQUEST
    return found


def drain(connection: socket.socket) -> None:
    """Read to the end."""
    while connection.recv(1 << 16):
        pass
