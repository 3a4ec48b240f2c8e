"""A connection in HTTP/2 by hand, which can do what gRPC's own clients would not."""

import socket
import struct
import threading
from contextlib import suppress

from benchmarks.attacks.mixtures import TRAIN
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW = 4  # the setting
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CONNECT_S = 20.0
_KEY = mix_pb2.Key(implementation="threefry2x32", words=[0, 7])


class RawConnection:
    """Begins with `window` bytes of room for each reply of the server. With `is_polite` it answers settings and pings.

    `send` and what is built on it raise OSError once the server has ended the connection.
    """

    def __init__(self, address: str, *, window: int = 0, is_polite: bool = True):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), _CONNECT_S)
        self.begun = self.ended = 0  # calls: of this end, and by the server
        self.is_open = True
        self._sending = threading.Lock()
        self._next = 1
        self.send(_PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW, window)))
        threading.Thread(target=self._read, args=(is_polite,), daemon=True).start()

    def send(self, content: bytes) -> None:
        with self._sending:
            self.socket.sendall(content)

    def call(self, method: str, request: bytes | None) -> int:
        """Begin a call, and send its request unless it is None. Returns the number of its stream."""
        with self._sending:
            stream, self._next = self._next, self._next + 2
            content = headers(stream, method)
            if request is not None:
                content += message(stream, request)
            self.socket.sendall(content)
            self.begun += 1
            return stream

    def calls_under_way(self) -> int:
        """How many calls have begun and not ended."""
        return self.begun - self.ended if self.is_open else 0

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _read(self, is_polite: bool) -> None:
        ended = set[int]()
        with suppress(OSError), self.socket.makefile("rb") as incoming:
            while len(head := incoming.read(9)) == 9:
                content = incoming.read(int.from_bytes(head[:3], "big"))
                kind, flags = head[3], head[4]
                if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                    stream = int.from_bytes(head[5:], "big")
                    self.ended += stream not in ended  # both frames may come
                    ended.add(stream)
                if is_polite and not flags & ACK and kind in (SETTINGS, PING):
                    self.send(frame(kind, ACK, 0, content if kind == PING else b""))
        self.is_open = False
        self.socket.close()


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def headers(stream: int, method: str) -> bytes:
    """The frame that begins a call of gRPC."""
    fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "server"}
    fields |= {"te": "trailers", "content-type": "application/grpc"}
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block)


def message(stream: int, request: bytes) -> bytes:
    """The frame with the only request of a call."""
    return frame(DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(request)) + request)


def reset(stream: int) -> bytes:
    """The frame that cancels a call."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def batch_request(start: int, size: int, mixture: str = TRAIN) -> bytes:
    """A request to GetBatchAt."""
    return _batch(start, size, mixture).SerializeToString()


def stream_request(size: int, count: int, mixture: str = TRAIN) -> bytes:
    """A request to StreamBatches for `count` batches of `size` rows, one in each reply."""
    first = _batch(0, size, mixture)
    wanted = mix_pb2.StreamBatchesRequest(first=first, stride=size, count=count, reply_rows=size)
    return wanted.SerializeToString()


def _batch(start: int, size: int, mixture: str) -> mix_pb2.GetBatchAtRequest:
    return mix_pb2.GetBatchAtRequest(mixture=mixture, key=_KEY, start=start, size=size)


def _text(of: str) -> bytes:
    return bytes([len(of)]) + of.encode()


GET_BATCH_AT, STREAM_BATCHES = methods.GET_BATCH_AT, methods.STREAM_BATCHES
