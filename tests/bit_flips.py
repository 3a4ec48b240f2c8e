"""A TCP proxy that flips one bit when it is told to."""

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

TO_CLIENT, TO_SERVER = "to the client", "to the server"
HOST = "127.0.0.2"  # all of 127.0.0.0/8 is this host on Linux: so the proxy can have the server's own ports


class BitFlips:
    """Passes what comes to `ports` of 127.0.0.2 on to the same ports of 127.0.0.1, and back.

    So a client that connects to the proxy, and gets another port from the server, finds the proxy there too.
    """

    def __init__(self, ports: Sequence[int]):
        self.passed = {TO_CLIENT: 0, TO_SERVER: 0}  # bytes
        self.flips = 0
        self._next: tuple[str, int, int] | None = None  # the direction, the byte and the bit of the next one
        self._lock = threading.Lock()
        self._ends = set[socket.socket]()
        self._threads = list[threading.Thread]()
        self._listening = [socket.create_server((HOST, port)) for port in ports]
        for port, listening in zip(ports, self._listening, strict=True):
            self._start(self._accept, listening, port)

    def flip(self, direction: str, after_bytes: int, bit: int) -> None:
        """Flip that bit of the byte that comes after so many others, once."""
        with self._lock:
            self._next = direction, self.passed[direction] + after_bytes, bit

    def cut(self) -> None:
        """End all connections, and flip nothing from now on."""
        with self._lock:
            self._next = None
            for one in self._ends:
                _end(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._listening:
            _end(one)  # wakes the thread that waits for clients there
        while self._threads:
            self.cut()  # also what a thread has just accepted
            self._threads[0].join(0.1)
            if not self._threads[0].is_alive():
                del self._threads[0]

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket, port: int) -> None:
        with listening, suppress(OSError):
            while True:
                client, _ = listening.accept()
                self._start(self._serve, client, port)

    def _serve(self, client: socket.socket, port: int) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
            with self._lock:
                self._ends |= {client, server}
            back = threading.Thread(target=self._pass_on, args=(server, client, TO_CLIENT), daemon=True)
            back.start()
            self._pass_on(client, server, TO_SERVER)
            back.join()
            with self._lock:
                self._ends -= {client, server}

    def _pass_on(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        with suppress(OSError):
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while came := source.recv(1 << 16):
                target.sendall(self._flipped(bytearray(came), direction))
        _end(source)
        _end(target)

    def _flipped(self, data: bytearray, direction: str) -> bytearray:
        with self._lock:
            first = self.passed[direction]
            self.passed[direction] += len(data)
            if self._next is not None and self._next[0] == direction:
                _, at, bit = self._next
                if first <= at < first + len(data):
                    data[at - first] ^= 1 << bit
                    self._next = None
                    self.flips += 1
        return data


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
