"""The limit over TCP: one thread plans, gathers and sends; the client receives into memory that exists already.

In its favour: the server gathers every batch into the same memory, which it can do because `sendall` has copied the
batch before it returns; the client uses the same six batches in turn; bytes are sent without any frame.
"""

import itertools
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np

from benchmarks.common.pipes import start_server
from benchmarks.common.work import ROW
from benchmarks.race.contestant import Contestant
from benchmarks.race.limits.connections import answer_all, receive

_REQUEST = struct.Struct("<qq")  # records in a batch, key
_BATCHES = 6


def contestant() -> Contestant:
    server = start_server(__name__)
    host, _, port = server.address.rpartition(":")

    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[np.ndarray]]:
        with closing(socket.create_connection((host, int(port)))) as connection:
            connection.sendall(_REQUEST.pack(size, key))
            yield receive(connection, [np.zeros((size, ROW), np.int32) for _ in range(_BATCHES)])

    return Contestant(open_batches, ("mixserve", "jax", "numpy"), ahead=lambda _: 8, servers=(server,))


@contextmanager
def serve() -> Iterator[str]:
    # Only servers import mixserve: the trainer's process has neither JAX nor the data.
    from benchmarks.race.planned import Planned

    planned = Planned()

    def send(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        size, key = _REQUEST.unpack(connection.recv(_REQUEST.size, socket.MSG_WAITALL))
        memory = np.zeros((size, ROW), np.int32)
        for batch in planned.fill(size, key, itertools.repeat(memory)):
            connection.sendall(memoryview(batch).cast("B"))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        answer_all(listening, send)
        yield f"127.0.0.1:{listening.getsockname()[1]}"
