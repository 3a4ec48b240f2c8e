"""A connection that a proxy passes on, and what happens to its bytes on the way."""

import math
import os
import random
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Self

_CHUNK_BYTES = 64 << 10
# What the proxy holds per direction, and about what the kernel holds for it: a peer of a stalled proxy soon sees a
# closed window, as it would of a peer that does not read.
HELD_BYTES = 256 << 10
_HELD_BYTES_OF_A_LONG_WAY = 16 << 20  # what is on the way of a link with a delay


@dataclass(frozen=True)
class Faults:
    """What happens to the bytes of one direction."""

    delay_s: float = 0.0  # each byte arrives so much later
    bytes_per_s: float = math.inf
    stalled: bool = False  # nothing is read: the sender's window closes
    swallowed: bool = False  # everything is read and thrown away: a black hole
    flip_rate: float = 0.0  # the share of bytes of which one bit is flipped
    seed: int = 0  # of the places of those bits

    def __str__(self) -> str:
        changed = [one for one in fields(self) if getattr(self, one.name) != one.default]
        return ", ".join(f"{one.name} {getattr(self, one.name):.3g}" for one in changed) or "well"

    @classmethod
    def draw(cls, choice: random.Random, flips: bool = False) -> Self:
        """Faults of one kind, at random; `flips`: flipped bits too, which only checksums notice."""
        kinds: list[Callable[[], Self]] = [
            lambda: cls(delay_s=choice.uniform(0.001, 0.3)),
            lambda: cls(bytes_per_s=10 ** choice.uniform(4, 7)),
            lambda: cls(stalled=True),
            lambda: cls(swallowed=True),
        ]
        if flips:
            kinds.append(lambda: cls(flip_rate=10 ** choice.uniform(-7, -4), seed=choice.randrange(1 << 32)))
        return choice.choice(kinds)()


class Link:
    """A connection of a client, and the one to the server that belongs to it. Lives in the proxy's thread."""

    def __init__(
        self,
        client: socket.socket,
        target: tuple[str, int],
        faults: Mapping[str, Faults],
        number: int,
        selector: selectors.BaseSelector,
        note_flips: Callable[[int], None],
        ended: Callable[["Link"], None],
    ):
        self.port = target[1]
        self._selector, self._ended = selector, ended
        server = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HELD_BYTES)
        for made in (client, server):
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ends = client, server
        self._is_connecting = True
        self._up = _Flow(client, server, lambda: faults["up"], 2 * number, note_flips)
        self._down = _Flow(server, client, lambda: faults["down"], 2 * number + 1, note_flips)
        self._interests = dict[socket.socket, int]()
        self.due = math.inf  # when bytes that are held back may go on
        server.connect_ex(target)
        self._update()

    @property
    def has_gaps(self) -> bool:
        """Whether bytes were thrown away."""
        return self._up.has_gap or self._down.has_gap

    def act(self) -> None:
        """Move what can be moved. It does not matter which event came: a socket that is not ready says so."""
        try:
            if self._is_connecting:
                self._finish_connecting()
            if not self._is_connecting:
                for flow in (self._up, self._down):
                    flow.move()
        except OSError:
            self.end(reset=True)
            return
        if self._up.is_over and self._down.is_over:
            self.end(reset=False)
        else:
            self._update()

    def end(self, *, reset: bool) -> None:
        for made in self._ends:
            self._watch(made, 0)
            with suppress(OSError):  # the peer has ended it, or we have
                if reset:  # close() sends RST
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:  # FIN, also if the peer sent what was not read, for which close() sends RST
                    made.shutdown(socket.SHUT_WR)
            made.close()
        self._ended(self)

    def _finish_connecting(self) -> None:
        """Raises OSError."""
        _, server = self._ends
        error = server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        with suppress(OSError):
            server.getpeername()
            self._is_connecting = False

    def _update(self) -> None:
        client, server = self._ends
        now = time.monotonic()
        if self._is_connecting:
            self._watch(server, selectors.EVENT_WRITE)
            return
        for made, incoming, outgoing in ((client, self._up, self._down), (server, self._down, self._up)):
            reads = selectors.EVENT_READ if incoming.may_read else 0
            self._watch(made, reads | (selectors.EVENT_WRITE if outgoing.due <= now else 0))
        self.due = min((flow.due for flow in (self._up, self._down) if flow.due > now), default=math.inf)

    def _watch(self, made: socket.socket, interest: int) -> None:
        """Sockets of no interest leave the selector, which would report again and again that they have ended."""
        before, self._interests[made] = self._interests.get(made, 0), interest
        if before == interest:
            return
        if not interest:
            self._selector.unregister(made)
        elif before:
            self._selector.modify(made, interest, self)
        else:
            self._selector.register(made, interest, self)


class _Flow:
    """One direction of a connection: bytes that came from `source`, until they may go to `sink`."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        faults: Callable[[], Faults],
        number: int,
        note_flips: Callable[[int], None],
    ):
        self._source, self._sink, self._faults, self._number = source, sink, faults, number
        self._note_flips = note_flips
        self._held = deque[tuple[float, bytes]]()  # with the time at which they came
        self._held_bytes = 0
        self._free_at = 0.0  # when the line has sent what it got
        self._came_to_end = self._told_end = False
        self._flips: tuple[tuple[float, int], _Flips] | None = None
        self.has_gap = False

    @property
    def is_over(self) -> bool:
        return self._told_end

    @property
    def may_read(self) -> bool:
        faults = self._faults()
        most = _HELD_BYTES_OF_A_LONG_WAY if faults.delay_s else HELD_BYTES
        return not (self._came_to_end or faults.stalled) and self._held_bytes < most

    @property
    def due(self) -> float:
        """When there is something to write, a time of `time.monotonic()`; infinite if there is nothing."""
        faults = self._faults()
        if not self._held or faults.stalled:
            return math.inf
        due = self._held[0][0] + faults.delay_s
        return due if faults.bytes_per_s == math.inf else max(due, self._free_at)

    def move(self) -> None:
        """Read, and write what is due. Raises OSError."""
        faults = self._faults()
        if faults.swallowed and self._held:
            self._held.clear()
            self._held_bytes, self.has_gap = 0, True
        if self.may_read:
            with suppress(BlockingIOError, InterruptedError):
                data = self._source.recv(_CHUNK_BYTES)
                self._came_to_end = not data
                if faults.swallowed:
                    self.has_gap = self.has_gap or bool(data)
                elif data:
                    self._held.append((time.monotonic(), self._flip(faults, data)))
                    self._held_bytes += len(data)
        while self.due <= time.monotonic():
            came_at, data = self._held.popleft()
            most = len(data) if faults.bytes_per_s == math.inf else max(1, int(faults.bytes_per_s / 50))
            try:
                sent = self._sink.send(data[:most])
            except (BlockingIOError, InterruptedError):
                sent = 0
            self._held_bytes -= sent
            if sent < len(data):
                self._held.appendleft((came_at, data[sent:]))
            if faults.bytes_per_s != math.inf:
                self._free_at = max(self._free_at, time.monotonic()) + sent / faults.bytes_per_s
            if sent < min(most, len(data)):
                break
        if self._came_to_end and not (self._held or self._told_end or faults.swallowed):
            self._told_end = True
            with suppress(OSError):  # the other direction has met the same end
                self._sink.shutdown(socket.SHUT_WR)

    def _flip(self, faults: Faults, data: bytes) -> bytes:
        if not faults.flip_rate:
            return data
        wanted = (faults.flip_rate, faults.seed)
        if self._flips is None or self._flips[0] != wanted:
            self._flips = wanted, _Flips(faults.flip_rate, f"{faults.seed} {self._number}")
        changed, bits = self._flips[1].flip(data)
        self._note_flips(bits)  # before they are sent: who has received them may ask at once
        return changed


class _Flips:
    """Flips bits of a stream of bytes, at places that depend on the seed and not on how the stream is cut."""

    def __init__(self, rate: float, seed: str):
        self._random = random.Random(seed)
        self._rate = rate
        self._left = self._gap()

    def flip(self, data: bytes) -> tuple[bytes, int]:
        """The data with bits flipped, and how many."""
        changed, flipped = bytearray(data), 0
        while self._left < len(changed):
            changed[self._left] ^= 1 << self._random.randrange(8)
            flipped += 1
            self._left += 1 + self._gap()
        self._left -= len(changed)
        return bytes(changed), flipped

    def _gap(self) -> int:
        """The bytes before the next one that is changed: geometric, as if a coin was thrown for each byte."""
        if self._rate >= 1:
            return 0
        return int(math.log(1 - self._random.random()) / math.log1p(-self._rate))
