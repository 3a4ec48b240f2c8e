"""Frames of HTTP/2 as no library of gRPC would send them, over bare sockets."""

import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from mixserve_client.wire import methods

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4
_SHORT_S = 0.02


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request_headers(method: str) -> bytes:
    """The header block of a call, without compression."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


def message(request: bytes) -> bytes:
    """A request as gRPC frames it."""
    return struct.pack(">BI", 0, len(request)) + request


class Peer:
    """A connection that has said that it speaks HTTP/2; `sent` counts its requests."""

    def __init__(self, address: tuple[str, int], settings: bytes = b""):
        self._socket = socket.create_connection(address, 10)
        self._socket.settimeout(_SHORT_S)
        self.sent = 0
        self._stream = -1
        self.send(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, data: bytes) -> None:
        """Whatever the server takes of it soon."""
        with suppress(OSError):
            self._socket.sendall(data)

    def begin(self, method: str, flags: int = _END_HEADERS) -> int:
        """The number of a new stream, whose headers are sent."""
        self._stream += 2
        self.sent += 1
        self.send(frame(HEADERS, flags, self._stream, request_headers(method)))
        return self._stream

    def close(self) -> None:
        self._socket.close()


Attack = Callable[[tuple[str, int], random.Random, Callable[[], tuple[str, bytes]]], Peer]


def half_open(address: tuple[str, int], choice: random.Random, request: Callable[[], tuple[str, bytes]]) -> Peer:
    """Calls whose requests never come, or stop in the middle."""
    peer = Peer(address)
    for _ in range(choice.randint(1, 20)):
        method, data = request()
        stream = peer.begin(method)
        if choice.random() < 0.5:
            whole = message(data)
            peer.send(frame(DATA, 0, stream, whole[: choice.randrange(len(whole))]))
    return peer


def zero_window(address: tuple[str, int], choice: random.Random, request: Callable[[], tuple[str, bytes]]) -> Peer:
    """Calls whose replies are never taken."""
    peer = Peer(address, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0))
    for _ in range(choice.randint(1, 20)):
        method, data = request()
        stream = peer.begin(method)
        peer.send(frame(DATA, _END_STREAM, stream, message(data[:16_000])))
    return peer


def rapid_reset(address: tuple[str, int], choice: random.Random, request: Callable[[], tuple[str, bytes]]) -> Peer:
    """Calls that are taken back at once, hundreds of them."""
    peer = Peer(address)
    for _ in range(choice.randint(50, 300)):
        method, data = request()
        stream = peer.begin(method)
        if choice.random() < 0.5:
            peer.send(frame(DATA, _END_STREAM, stream, message(data[:16_000])))
        peer.send(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
    return peer


def floods(address: tuple[str, int], choice: random.Random, request: Callable[[], tuple[str, bytes]]) -> Peer:
    """Pings, settings, window updates, priorities or headers without an end, as fast as the server takes them."""
    peer = Peer(address)
    stream = peer.begin(methods.GET_SERVER, 0)
    many = {
        "pings": frame(PING, 0, 0, bytes(8)),
        "settings": frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, choice.randrange(1 << 31))),
        "windows": frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)),
        "priorities": frame(PRIORITY, 0, stream, struct.pack(">IB", 0, 7)),
        "headers": frame(CONTINUATION, 0, stream, b"\0\1a\1b" * 50),
        "empty": frame(DATA, 0, stream),
    }
    peer.send(many[choice.choice(list(many))] * choice.randint(10, 2000))
    return peer


def garbage(address: tuple[str, int], choice: random.Random, request: Callable[[], tuple[str, bytes]]) -> Peer:
    """Frames of any kind with anything in them."""
    peer = Peer(address, choice.randbytes(6 * choice.randrange(5)))
    for _ in range(choice.randint(1, 30)):
        method, data = request()
        if choice.random() < 0.3:
            peer.begin(method, choice.randrange(256))
        else:
            payload = choice.choice((data, choice.randbytes(choice.randrange(64)), request_headers(method)))
            kind, flags = choice.randrange(12), choice.randrange(256)
            peer.send(frame(kind, flags, choice.choice((0, 1, 2, 3, 1 << 30)), payload[:16_000]))
            peer.sent += 1
    return peer


ATTACKS: tuple[Attack, ...] = (half_open, zero_window, rapid_reset, floods, garbage)


def attack(address: tuple[str, int], choice: random.Random, request: Callable[[], tuple[str, bytes]]) -> int:
    """One connection of a kind drawn at random, kept for a moment; returns how many requests it had."""
    with suppress(OSError):  # the server may refuse it
        peer = choice.choice(ATTACKS)(address, choice, request)
        time.sleep(choice.choice((0, 0, 0.05, 0.5)))
        peer.close()
        return peer.sent
    return 0
