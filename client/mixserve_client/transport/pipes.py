"""Connected sockets, plain and with TLS, that move bytes with few system calls; both ends of bulk channels use them."""

import select
import socket
import ssl
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Protocol

PATIENCE_S = 0.1  # how long a call with `wait` waits at most

_ALL = getattr(socket, "MSG_WAITALL", 0)
_NOW = socket.MSG_DONTWAIT
# A peer whose host is gone sends no end of the connection: the kernel asks after 60 s, and every 15 s, four times.
_IDLE_S, _INTERVAL_S, _TRIES = 60, 15, 4
_UNACKNOWLEDGED_MS = 30_000
_IDLE_OPTION = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # the second on macOS


class Pipe(Protocol):
    """A connection to one peer. One thread may send while another receives. Every call may raise OSError."""

    def send(self, parts: list[memoryview], *, wait: bool) -> None:
        """Send the bytes (memoryviews of uint8) of `parts`, and remove from it what was sent.

        Returns when all is sent, or when the peer takes no more: at once, or with `wait` after 0.1 s.
        """
        ...

    def receive(self, into: memoryview, *, wait: bool, whole: bool = False) -> int | None:
        """The number of bytes received: 0 at the end, None if none came at once, or with `wait` within 0.1 s.

        With `whole`, waits for all of `into`, and returns less only if nothing comes for 0.1 s.
        """
        ...

    def wait(self, seconds: float) -> bool:
        """Whether there is something to receive within `seconds`, before which `receive` returned None."""
        ...

    def fileno(self) -> int:
        """The socket's descriptor."""
        ...

    def shutdown(self) -> None:
        """Make calls in other threads end."""
        ...

    def close(self) -> None:
        """Close the socket."""
        ...


class PlainPipe:
    """A socket without TLS."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._is_unix = connection.family == socket.AF_UNIX  # whose limit is for each piece of what is sent
        # The kernel's own limits on waiting: with Python's, every call would be two system calls, and MSG_WAITALL would
        # have no effect.
        connection.setblocking(True)
        limit = struct.pack("@ll", 0, int(PATIENCE_S * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        _prepare(connection)

    def send(self, parts: list[memoryview], *, wait: bool) -> None:
        # Not until all is sent: the frames of a slow peer may take minutes.
        with suppress(BlockingIOError, InterruptedError):
            _advance(parts, self._socket.sendmsg(parts, (), 0 if wait and not self._is_unix else _NOW))
        if wait and parts and self._is_unix and _wait(self._socket, select.POLLOUT, PATIENCE_S):
            with suppress(BlockingIOError, InterruptedError):
                _advance(parts, self._socket.sendmsg(parts, (), _NOW))

    def receive(self, into: memoryview, *, wait: bool, whole: bool = False) -> int | None:
        try:
            return self._socket.recv_into(into, 0, (_ALL if whole else 0) if wait else _NOW)
        except (BlockingIOError, InterruptedError):
            return None

    def wait(self, seconds: float) -> bool:
        return _wait(self._socket, select.POLLIN, seconds)

    def fileno(self) -> int:
        return self._socket.fileno()

    def shutdown(self) -> None:
        _shut_down(self._socket)

    def close(self) -> None:
        self._socket.close()


class TlsPipe:
    """A socket with TLS, after its handshake."""

    # OpenSSL cannot read and write one connection at a time, so all calls of it are short, and under a lock.

    def __init__(self, connection: ssl.SSLSocket):
        self._socket = connection
        # Reentrant: the garbage collector may cancel a stream in a thread that holds it.
        self._lock = threading.RLock()
        connection.setblocking(False)
        _prepare(connection)

    def send(self, parts: list[memoryview], *, wait: bool) -> None:
        until = time.monotonic() + PATIENCE_S if wait else 0.0
        while parts:
            try:
                with self._lock:
                    sent = self._socket.send(parts[0])
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as error:
                wanted = select.POLLOUT if isinstance(error, ssl.SSLWantWriteError) else select.POLLIN
                if not wait or not _wait(self._socket, wanted, until - time.monotonic()):
                    return
                continue
            _advance(parts, sent)

    def receive(self, into: memoryview, *, wait: bool, whole: bool = False) -> int | None:
        received = 0
        while True:
            try:
                with self._lock:
                    came = self._socket.recv_into(into[received:])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if (received and not whole) or not wait or not _wait(self._socket, select.POLLIN, PATIENCE_S):
                    return received or None
                continue
            received += came
            if not came or received == len(into) or not whole:
                return received

    def wait(self, seconds: float) -> bool:
        return _wait(self._socket, select.POLLIN, seconds)

    def fileno(self) -> int:
        return self._socket.fileno()

    def shutdown(self) -> None:
        _shut_down(self._socket)

    def close(self) -> None:
        self._socket.close()


def _prepare(connection: socket.socket) -> None:
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if _IDLE_OPTION is not None:
        connection.setsockopt(socket.IPPROTO_TCP, _IDLE_OPTION, _IDLE_S)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _TRIES)
        # What was sent is not acknowledged, as after a change of a firewall: the kernel would try for a quarter hour.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)


def _advance(parts: list[memoryview], sent: int) -> None:
    """Remove the first `sent` bytes of `parts`."""
    while parts and sent >= len(parts[0]):
        sent -= len(parts[0])
        del parts[0]
    if sent:
        parts[0] = parts[0][sent:]


def _wait(connection: socket.socket, events: int, seconds: float) -> bool:
    """Whether one of `events` came within `seconds`."""
    descriptor = connection.fileno()
    if descriptor < 0:
        raise ConnectionError("the connection is closed")
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        # Not the method of an SSLSocket, after which other threads would read and write without TLS.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
