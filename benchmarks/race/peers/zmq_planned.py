"""ZeroMQ (pyzmq) doing the same work: a PUSH socket for each stream sends what mixserve's own parts plan and gather.

In its favour: a message is sent from the memory into which it was gathered, and viewed where ZeroMQ has received it;
batches above 1,024 records travel in pieces of 1 MiB, which made them two to three times as fast; either end may hold
16 MiB (4 and 64 were not faster); glibc is made to keep freed memory, as in a mixserve server.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import zmq

from benchmarks.common.pipes import start_server
from benchmarks.common.work import ROW, ROW_BYTES, Batch
from benchmarks.race.contestant import Contestant
from benchmarks.race.pieces import piece_rows

_IN_FLIGHT_BYTES = 16 << 20
_LEAVING_MS = 1000  # a server's socket that can send nothing for so long has lost its reader


def contestant() -> Contestant:
    server = start_server(__name__)
    context = zmq.Context()

    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[Batch]]:
        with context.socket(zmq.REQ) as asking, context.socket(zmq.PULL) as stream:
            asking.connect(server.address)
            asking.send_json([piece_rows(size), key])
            stream.rcvhwm = in_flight(piece_rows(size))
            stream.connect(asking.recv_json())
            yield batches(stream, size)

    def ahead(size: int) -> int:
        return 1 + 2 * in_flight(piece_rows(size)) * piece_rows(size) // size

    return Contestant(open_batches, ("pyzmq", "mixserve", "jax", "numpy"), ahead, (server,))


def in_flight(rows: int) -> int:
    """How many messages of so many records either end may hold."""
    return _IN_FLIGHT_BYTES // (rows * ROW_BYTES)


def batches(stream: zmq.Socket, size: int) -> Iterator[Batch]:
    while True:
        yield [
            np.frombuffer(stream.recv(copy=False).buffer, np.int32).reshape(-1, ROW)
            for _ in range(size // piece_rows(size))
        ]


@contextmanager
def serve() -> Iterator[str]:
    # Only servers import mixserve: the trainer's process has neither JAX nor the data.
    from benchmarks.race.planned import Planned, fresh
    from mixserve_client.transport.allocator import keep_freed_memory

    keep_freed_memory()
    planned, context = Planned(), zmq.Context()

    def push(stream: zmq.Socket, rows: int, key: int) -> None:
        with stream, suppress(zmq.Again):
            # Every message in memory of its own: ZeroMQ sends it later, without a copy.
            for piece in planned.fill(rows, key, fresh(rows)):
                stream.send(piece, copy=False)

    def answer() -> None:
        while True:
            rows, key = asked.recv_json()
            stream = context.socket(zmq.PUSH)
            stream.sndhwm, stream.sndtimeo, stream.linger = in_flight(rows), _LEAVING_MS, 0
            port = stream.bind_to_random_port("tcp://127.0.0.1")
            threading.Thread(target=push, args=(stream, rows, key), daemon=True).start()
            asked.send_json(f"tcp://127.0.0.1:{port}")

    with context.socket(zmq.REP) as asked:
        port = asked.bind_to_random_port("tcp://127.0.0.1")
        threading.Thread(target=answer, daemon=True).start()
        yield f"tcp://127.0.0.1:{port}"
