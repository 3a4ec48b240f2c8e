"""A bare TCP connection over loopback: the speed of the operating system.

In its favour: the server sends the same memory repeatedly, from the CPU's cache; the client receives into memory that
exists already, and overwrites the previous batch.
"""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import numpy as np

from benchmarks.common.pipes import start_server
from benchmarks.common.work import ROW, ROW_BYTES
from benchmarks.race.contestant import Contestant

_SIZE = struct.Struct("<q")


def contestant() -> Contestant:
    server = start_server(__name__)
    host, _, port = server.address.rpartition(":")

    @contextmanager
    def open_batches(size: int, _key: int) -> Iterator[Iterator[np.ndarray]]:
        with closing(socket.create_connection((host, int(port)))) as connection:
            connection.sendall(_SIZE.pack(size))
            yield batches(connection, size)

    return Contestant(open_batches, ("numpy",), ahead=lambda _: 8, servers=(server,))


def batches(connection: socket.socket, size: int) -> Iterator[np.ndarray]:
    batch = np.zeros((size, ROW), np.int32)
    view = memoryview(batch).cast("B")
    while True:
        if connection.recv_into(view, view.nbytes, socket.MSG_WAITALL) != view.nbytes:
            raise ConnectionError("the server has closed the connection")
        yield batch


@contextmanager
def serve() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def accept(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=send, args=(connection,), daemon=True).start()


def send(connection: socket.socket) -> None:
    with connection, suppress(ConnectionError):
        (size,) = _SIZE.unpack(connection.recv(_SIZE.size, socket.MSG_WAITALL))
        batch = bytes(size * ROW_BYTES)
        while True:
            connection.sendall(batch)
