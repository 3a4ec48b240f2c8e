"""A TCP proxy between a client and a server that does to their bytes what bad networks do.

    with Proxy(server.address) as proxy, MixClient.connect(proxy.address, shared_memory=False) as client:
        proxy.stall()                   # both ends keep their connections, and no byte moves
        proxy.restore()                 # the bytes that waited go on
        proxy.cut()                     # every connection ends with RST, and new ones are refused until `restore`
        proxy.flip_bits(1e-6, seed=1)   # of the bytes from the server, one in a million gets one bit flipped
        proxy.stall("down", proxy.bulk_port)    # only what comes from the server over bulk channels

It listens on a loopback address of its own. A client connects to bulk channels at the host that it knows and the port
that the server tells, so the proxy listens at that port too. (Shared memory goes past it.)
"""

import math
import os
import random
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any, Literal, Self

from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.wire import methods
from mixserve_client.wire.server import decode_server
from tests.links import HELD_BYTES, Faults, Link

Direction = Literal["up", "down", "both"]  # up: from the client to the server

_DEADLINE_S = 30
_NUMBERS = count(random.SystemRandom().randrange(1 << 16))


class Proxy:
    """Listens at `address`, and at the port of bulk channels there, and connects each connection to the server.

    All methods may be called from any thread at any time, and have taken effect when they return.
    """

    def __init__(self, target: str, *, bulk_port: int | None = None):
        """Pass bytes to `target`, "host:port".

        `bulk_port`: the server's port of bulk channels, 0 for none; by default the proxy asks the server for it, which
        must run and let everybody call.
        """
        host, _, port = target.rpartition(":")
        self.accepted = 0  # connections so far
        self.flipped = 0  # bits so far
        self._target = host.strip("[]")
        self._port = int(port)
        self.bulk_port = _bulk_port_of(target) if bulk_port is None else bulk_port
        number = next(_NUMBERS)
        # One of 2^22 loopback addresses, so that proxies of one test, or of many processes, can use the same ports.
        place = (os.getpid() * 7919 + number) % (1 << 22)
        self._host = f"127.{64 + (place >> 16)}.{place >> 8 & 255}.{place & 255}"
        self._ports = [self._port] if self.bulk_port in (0, self._port) else [self._port, self.bulk_port]
        self._faults = {port: {"up": Faults(), "down": Faults()} for port in self._ports}
        self._listening = dict[socket.socket, int]()
        self._links = set[Link]()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._orders = deque[tuple[Callable[[], None], threading.Event]]()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    @property
    def address(self) -> str:
        """Where clients connect instead of to the server."""
        return f"{self._host}:{self._port}"

    @property
    def grpc_port(self) -> int:
        """The port of `address`; `bulk_port` is that of bulk channels."""
        return self._port

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._links)

    def __enter__(self) -> Self:
        self._listen()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections with RST, and listen no more."""

        def close() -> None:
            self._cut(reset=True)
            self._refuse()
            self._closed = True

        if not self._closed:
            self._do(close)
            self._thread.join(_DEADLINE_S)
            self._selector.close()
            self._wake.close()
            self._woken.close()

    def set(self, faults: Faults, direction: Direction = "both", port: int | None = None) -> None:
        """Do this to the bytes of a direction from now on, in place of what was done to them.

        Here and below, `port` is the one port whose connections are meant: `grpc_port` or `bulk_port`.
        """
        self._change(direction, port, lambda _: faults)

    def delay(self, delay_s: float, direction: Direction = "both", port: int | None = None) -> None:
        """Let each byte arrive so much later. Order and throughput stay as they are."""
        self._change(direction, port, lambda old: replace(old, delay_s=delay_s))

    def limit(self, bytes_per_s: float, direction: Direction = "both", port: int | None = None) -> None:
        """Let at most so many bytes a second through, for each connection."""
        self._change(direction, port, lambda old: replace(old, bytes_per_s=bytes_per_s))

    def stall(self, direction: Direction = "both", port: int | None = None) -> None:
        """Read nothing and write nothing: windows close, and connections stay. New ones are accepted too."""
        self._change(direction, port, lambda old: replace(old, stalled=True))

    def black_hole(self, direction: Direction = "both", port: int | None = None) -> None:
        """Accept everything and say nothing. Connections that lost bytes end with RST at `restore`."""
        self._change(direction, port, lambda old: replace(old, swallowed=True))

    def flip_bits(self, rate: float, seed: int = 0, direction: Direction = "down", port: int | None = None) -> None:
        """Flip one bit of this share of the bytes. The same `seed` and connections flip the same ones."""
        self._change(direction, port, lambda old: replace(old, flip_rate=rate, seed=seed))

    def cut(self, *, reset: bool = True) -> None:
        """End every connection, with RST or else with FIN, and refuse new ones until `restore`."""
        self._do(lambda: (self._refuse(), self._cut(reset=reset)))

    def drop(self, port: int | None = None, *, reset: bool = True) -> None:
        """End every connection once, with RST or else with FIN."""
        self._do(lambda: self._cut(port, reset=reset))

    def restore(self) -> None:
        """Be a good network again."""

        def restore() -> None:
            for link in list(self._links):
                link.act()
                if link.has_gaps:
                    link.end(reset=True)
            if not self._listening:
                self._listen()

        self.set(Faults())
        self._do(restore)

    def _change(self, direction: Direction, port: int | None, change: Callable[[Faults], Faults]) -> None:
        def do() -> None:
            for one in self._ports if port is None else [port]:
                for way in ("up", "down") if direction == "both" else (direction,):
                    self._faults[one][way] = change(self._faults[one][way])
            for link in list(self._links):
                link.act()

        self._do(do)

    def _do(self, order: Callable[[], Any]) -> None:
        """Run it in the proxy's thread; return when it is done."""
        assert not self._closed, "the proxy is closed"
        done = threading.Event()
        self._orders.append((order, done))
        self._wake.send(b"!")
        assert done.wait(_DEADLINE_S), "the proxy's thread has ended"

    def _listen(self) -> None:
        for port in self._ports:
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HELD_BYTES)  # accepted connections inherit it
            made.bind((self._host, port))
            made.listen(128)
            made.setblocking(False)
            self._listening[made] = port
            self._selector.register(made, selectors.EVENT_READ)

    def _refuse(self) -> None:
        for made in self._listening:
            self._selector.unregister(made)
            made.close()
        self._listening.clear()

    def _cut(self, port: int | None = None, *, reset: bool) -> None:
        for link in list(self._links):
            if port in (None, link.port):
                link.end(reset=reset)

    def _accept(self, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except OSError:  # it has gone
            return
        self.accepted += 1
        port = self._listening[listening]
        target, faults = (self._target, port), self._faults[port]
        number = self.accepted
        self._links.add(Link(client, target, faults, number, self._selector, self._note_flips, self._links.discard))

    def _note_flips(self, bits: int) -> None:
        self.flipped += bits

    def _run(self) -> None:
        while not self._closed:
            due = min((link.due for link in self._links), default=math.inf)
            timeout_s = None if due == math.inf else max(0.0, due - time.monotonic())
            for key, _ in self._selector.select(timeout_s):
                if key.fileobj is self._woken:
                    self._woken.recv(1 << 10)
                elif key.fileobj in self._listening:
                    self._accept(key.fileobj)
                elif (link := key.data) in self._links:
                    link.act()
            while self._orders:
                order, done = self._orders.popleft()
                order()
                done.set()
            now = time.monotonic()
            for link in list(self._links):
                if link.due <= now:
                    link.act()


def _bulk_port_of(target: str) -> int:
    transport = GrpcTransport(target)
    try:
        offer = decode_server(transport.call(methods.GET_SERVER, b"", _DEADLINE_S)).bulk
    finally:
        transport.close()
    return 0 if offer is None else offer.port
