"""Plain connections, as the limits use them: a thread for each one in the server, `recv_into` in the client."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np


def answer_all(listening: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    """From now on answer every connection in a thread of its own, until the client closes it."""

    def one(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            answer(connection)

    def all_of_them() -> None:
        while True:
            threading.Thread(target=one, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=all_of_them, daemon=True).start()


def receive(connection: socket.socket, memory: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Receive into one array of `memory` after another, over and over. Raises ConnectionError."""
    for batch in itertools.cycle(memory):
        view = memoryview(batch).cast("B")
        if connection.recv_into(view, view.nbytes, socket.MSG_WAITALL) != view.nbytes:
            raise ConnectionError("the server has closed the connection")
        yield batch
