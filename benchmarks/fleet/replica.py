"""A simulated replica: connections with streams that take turns, and what a reply waits for on its way out."""

from collections import OrderedDict, deque
from collections.abc import Generator, Hashable
from dataclasses import dataclass, field
from typing import Any

import simpy

from benchmarks.fleet.hardware import MEMORY_PASSES, Machine
from benchmarks.fleet.queues import Servers
from benchmarks.fleet.service_times import Draw, ServiceTimes
from mixserve.metrics.present import PresentReaders
from mixserve.serving.bulk_threads import THREADS

# As the server's cache of replies.
_CACHE_S, _CACHE_BYTES = 1.0, 32 << 20
Process = Generator[simpy.Event, Any, Any]


@dataclass(frozen=True)
class Source:
    """What the rows of a reply wait for, besides being copied.

    A read waits `wait_s`, one at a time under a lock if it is `locked`. Of each reply `remote` comes from another
    server (0..1). While a replica is cold, its disk gives `cold_bytes_s`.
    """

    wait_s: float = 0.0
    locked: bool = True
    remote: float = 0.0
    cold_bytes_s: float = 0.0  # 0: it is never cold


@dataclass(eq=False)
class Stream:
    """A request to a replica for some replies, and how far it has come."""

    reader: Any  # has `wake()`, `cores`, `nic`, `name`
    replies: list[int]  # their sizes in bytes
    key: Hashable = None  # of equal rows: equal keys share replies
    made: int = 0
    arrived: int = 0
    read: int = 0
    is_cancelled: bool = False
    is_broken: bool = False
    room: simpy.Event | None = field(default=None, repr=False)

    def note_read(self) -> None:
        """Its reader has taken a reply."""
        self.read += 1
        if self.room is not None and not self.room.triggered:
            self.room.succeed()

    def end(self, *, broken: bool = False) -> None:
        """It gets no more replies."""
        self.is_cancelled, self.is_broken = True, self.is_broken or broken
        if self.room is not None and not self.room.triggered:
            self.room.succeed()


class Connection:
    """A reader's connection to a replica: one stream at a time, in order."""

    def __init__(self) -> None:
        self.streams = deque[Stream]()
        self.is_answered = False


class Replica:
    """One server with its machine. `remote` are the servers of its remote sources."""

    def __init__(
        self,
        env: simpy.Environment,
        machine: Machine,
        times: ServiceTimes,
        draw: Draw,
        source: Source | None = None,
        *,
        zone: str = "",
        remote: "list[Replica] | None" = None,
        cores: Servers | None = None,
    ):
        """`cores` are shared with others if they are given."""
        self.env, self.zone = env, zone
        self.machine = machine
        self.cores = cores or Servers(machine.cores)
        self.python, self.gathering = Servers(machine.processes), Servers(max(1, self.cores.count // 2))
        self.nic, self.nic_in, self.memory = Servers(1), Servers(1), Servers(1)
        self.lock, self.disk = Servers(1), Servers(1)
        self.is_up, self.is_silent = True, False
        self.cold_until = 0.0
        self.sent_bytes = self.replies = 0
        self.cache_hits = 0
        self.present = PresentReaders(lambda: env.now)
        self._times, self._draw, self._source = times, draw, source or Source()
        self._remote = remote or []
        self._free_threads = THREADS * machine.processes
        self._queue = deque[simpy.Event]()
        self._streams: dict[Stream, None] = {}  # in progress or waiting, in order
        self._cache: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()  # key -> when it was made, bytes

    def open(self, stream: Stream, connection: Connection) -> None:
        """Begin a stream. If the server is down, it is broken, or nothing comes."""
        if not self.is_up:
            stream.end(broken=not self.is_silent)
            return
        self._streams[stream] = None
        connection.streams.append(stream)
        if not connection.is_answered:
            connection.is_answered = True
            self.env.process(self._answer(connection))

    def stop(self, *, silent: bool = False) -> None:
        """End: connections break, or with `silent`, as without power, nothing comes any more."""
        self.is_up, self.is_silent = False, silent
        streams, self._streams = list(self._streams), {}
        self._cache.clear()
        for stream in streams:
            stream.end(broken=not silent)
            stream.reader.wake()

    def start(self, cold_s: float = 0.0) -> None:
        """Serve again; rows come from a cold disk for `cold_s` seconds."""
        self.is_up, self.is_silent = True, False
        self.cold_until = self.env.now + cold_s

    def _answer(self, connection: Connection) -> Process:
        if (turn := self._take_turn()) is not None:
            yield turn
        while connection.streams:
            stream = connection.streams[0]
            present = self.present.come(stream.reader.name)
            while not stream.is_cancelled and stream.made < len(stream.replies):
                size = stream.replies[stream.made]
                unread = stream.made - stream.read
                if unread and unread * size >= self._times.socket_bytes:
                    stream.room = self.env.event()
                    self._give_turn()  # a reader that takes nothing holds no thread
                    yield stream.room
                    stream.room = None
                    if (turn := self._take_turn()) is not None:
                        yield turn
                    continue
                number, stream.made = stream.made, stream.made + 1
                yield from self._make(stream, number, size)
                if self._queue:  # others wait for a thread
                    self._give_turn()
                    turn = self._take_turn()
                    if turn is not None:
                        yield turn
            connection.streams.popleft()
            self._streams.pop(stream, None)
            self.present.leave(present)
        self._give_turn()
        connection.is_answered = False

    def _make(self, stream: Stream, number: int, size: int) -> Process:
        """Make a reply, and send it."""
        env, times, draw = self.env, self._times, self._draw
        # While it is planned the interpreter's lock is held.
        since = env.now
        yield self._until(self.python.serve(env.now, times.python.at(size) * draw.of(times.plan_shape), self.cores))
        if not self._is_cached(stream.key, number, size):
            yield from self._read(size)
            copying_s = times.gather.at(size) * draw.of(times.gather_shape)
            yield self._until(self.gathering.serve(env.now, copying_s, self.cores))
        self.present.note_reply(env.now - since)
        if stream.is_cancelled:
            return
        now = env.now
        end = self.cores.serve(now, times.send.byte_s * size * draw.of(times.gap_shape))
        end = max(end, self.memory.serve(now, MEMORY_PASSES * size / self.machine.memory_s))
        end = max(end, self.nic.serve(now, size / self.machine.nic_s))
        if stream.reader.nic is not None:
            end = max(end, stream.reader.nic.serve(now, size / stream.reader.nic_s))
        yield self._until(end)
        if not stream.is_cancelled:
            stream.arrived += 1
            self.sent_bytes += size
            self.replies += 1
            stream.reader.note_arrival(self, size)

    def _read(self, size: int) -> Process:
        """Wait for the source."""
        env, source = self.env, self._source
        if source.wait_s:
            yield self._until(self.lock.serve(env.now, source.wait_s)) if source.locked else env.timeout(source.wait_s)
        if source.cold_bytes_s and env.now < self.cold_until:
            yield self._until(self.disk.serve(env.now, size / source.cold_bytes_s))
        if source.remote and self._remote:
            part = int(size * source.remote)
            other = self._draw.one_of(self._remote)
            yield from other.give(part, self)

    def give(self, size: int, to: "Replica") -> Process:
        """Make records for another server, and send them to it, which receives them."""
        env, times, draw = self.env, self._times, self._draw
        yield self._until(self.python.serve(env.now, times.python.at(size) * draw.of(times.plan_shape), self.cores))
        copying_s = times.copying.at(size) * draw.of(times.gather_shape)
        yield self._until(self.cores.serve(env.now, copying_s))
        now = env.now
        end = self.nic.serve(now, size / self.machine.nic_s)
        yield self._until(max(end, to.nic_in.serve(now, size / to.machine.nic_s)))
        yield self._until(to.cores.serve(env.now, times.receive.at(size)))
        self.sent_bytes += size
        self.replies += 1

    def _is_cached(self, key: Hashable, number: int, size: int) -> bool:
        """Whether another reader has just asked for this reply; it is shared from now on."""
        if key is None:
            return False
        now, at = self.env.now, (key, number)
        while self._cache and now - next(iter(self._cache.values()))[0] > _CACHE_S:
            self._cache.popitem(last=False)
        if at in self._cache:
            self.cache_hits += 1
            return True
        self._cache[at] = now, size
        while sum(bytes_ for _, bytes_ in self._cache.values()) > _CACHE_BYTES:
            self._cache.popitem(last=False)
        return False

    def _take_turn(self) -> simpy.Event | None:
        """None if a thread is free; or else what to wait for."""
        if self._free_threads:
            self._free_threads -= 1
            return None
        event = self.env.event()
        self._queue.append(event)
        return event

    def _give_turn(self) -> None:
        if self._queue:
            self._queue.popleft().succeed()
        else:
            self._free_threads += 1

    def _until(self, at: float) -> simpy.Event:
        return self.env.timeout(at - self.env.now)
