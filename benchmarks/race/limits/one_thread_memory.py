"""The limit through shared memory: one thread plans and gathers into a slot, and sends one byte over a Unix socket.

The client sends a byte back for each slot that it has read, in one message for as many as it found ready. In its
favour: a batch is valid until the client asks for the one after it, and the eight slots take turns in their order.
Linux only, since the slots are a memfd.
"""

import itertools
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np

from benchmarks.common.pipes import start_server
from benchmarks.common.work import ROW, ROW_BYTES
from benchmarks.race.contestant import Contestant
from benchmarks.race.limits.connections import answer_all

_REQUEST = struct.Struct("<qq")  # records in a batch, key; the slots' file descriptor travels with it
_SLOTS = 8
_SIGNAL = b"x"  # to the client: a batch is in the next slot; to the server: a slot is free


def contestant() -> Contestant:
    server = start_server(__name__)

    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[np.ndarray]]:
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.connect(server.address)
            slots = _send_slots(connection, size, key)
            yield _completed(connection, slots)

    return Contestant(open_batches, ("mixserve", "jax", "numpy"), ahead=lambda _: _SLOTS, servers=(server,))


def _send_slots(connection: socket.socket, size: int, key: int) -> np.ndarray:
    """Share new slots with the server, which begins to fill them; returns them."""
    descriptor = os.memfd_create("slots")
    try:
        os.ftruncate(descriptor, _SLOTS * size * ROW_BYTES)
        slots = _mapped(descriptor, size)
        slots[:] = 0  # its pages exist before the round begins
        socket.send_fds(connection, [_REQUEST.pack(size, key)], [descriptor])
    finally:
        os.close(descriptor)
    return slots


def _mapped(descriptor: int, size: int) -> np.ndarray:
    """The slots, int32 of shape (_SLOTS, size, ROW); the mapping ends with the last array of it."""
    return np.frombuffer(mmap.mmap(descriptor, _SLOTS * size * ROW_BYTES), np.int32).reshape(_SLOTS, size, ROW)


def _completed(connection: socket.socket, slots: np.ndarray) -> Iterator[np.ndarray]:
    turn = itertools.cycle(slots)
    while ready := len(connection.recv(_SLOTS)):
        yield from itertools.islice(turn, ready)
        connection.send(_SIGNAL * ready)
    raise ConnectionError("the server has closed the connection")


@contextmanager
def serve() -> Iterator[str]:
    # Only servers import mixserve: the trainer's process has neither JAX nor the data.
    from benchmarks.race.planned import Planned

    planned = Planned()

    def send(connection: socket.socket) -> None:
        request, descriptors, *_ = socket.recv_fds(connection, _REQUEST.size, 1)
        size, key = _REQUEST.unpack(request)
        slots = _mapped(descriptors[0], size)
        os.close(descriptors[0])
        for _ in planned.fill(size, key, _free(connection, slots)):
            connection.send(_SIGNAL)

    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/socket")
        listening.listen()
        answer_all(listening, send)
        yield f"{folder}/socket"


def _free(connection: socket.socket, slots: np.ndarray) -> Iterator[np.ndarray]:
    """The slots in turn, each as soon as it is free, until the client closes the connection."""
    free = len(slots)
    for slot in itertools.cycle(slots):
        if not free:
            free = len(connection.recv(_SLOTS))
        if not free:
            return
        free -= 1
        yield slot
