"""A bare TCP connection over loopback: the speed of the operating system.

In its favour: the server sends the same memory repeatedly, from the CPU's cache; the client receives into memory that
exists already, and overwrites the previous batch.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np

from benchmarks.common.pipes import start_server
from benchmarks.common.work import ROW, ROW_BYTES
from benchmarks.race.contestant import Contestant
from benchmarks.race.limits.connections import answer_all, receive

_SIZE = struct.Struct("<q")


def contestant() -> Contestant:
    server = start_server(__name__)
    host, _, port = server.address.rpartition(":")

    @contextmanager
    def open_batches(size: int, _key: int) -> Iterator[Iterator[np.ndarray]]:
        with closing(socket.create_connection((host, int(port)))) as connection:
            connection.sendall(_SIZE.pack(size))
            yield receive(connection, [np.zeros((size, ROW), np.int32)])

    return Contestant(open_batches, ("numpy",), ahead=lambda _: 8, servers=(server,))


@contextmanager
def serve() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        answer_all(listening, send)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def send(connection: socket.socket) -> None:
    (size,) = _SIZE.unpack(connection.recv(_SIZE.size, socket.MSG_WAITALL))
    batch = bytes(size * ROW_BYTES)
    while True:
        connection.sendall(batch)
