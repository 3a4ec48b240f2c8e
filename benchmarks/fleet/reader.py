"""A simulated iterator: what it requests, by the client's own window; reading in order; retries; and its trainer."""

from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Any

import simpy

from benchmarks.fleet.choosing import Chooser
from benchmarks.fleet.queues import Servers
from benchmarks.fleet.replica import Connection, Process, Replica, Stream
from benchmarks.fleet.service_times import Draw, ServiceTimes
from mixserve_client.reading.ranges import Shard, reply_batches
from mixserve_client.reading.skips import Skips
from mixserve_client.reading.window import Window
from mixserve_client.rpc.replicas import FIRST_DELAY_S
from mixserve_client.rpc.stream_wait import LOST_S
from mixserve_client.schema import server as schema
from mixserve_client.schema.positions import POSITION_LIMIT
from mixserve_client.schema.requests import Sender

_NUMBERS = count(1)
_CONNECT_S = 0.0005  # until a client knows that no server listens


@dataclass(frozen=True)
class Load:
    """What a trainer asks for: batches of `batch_bytes`, one every `step_s` (0: as fast as they come)."""

    batch_bytes: int
    step_s: float
    steps: int
    prefetch: int = 2
    warm_up: int = 0  # steps whose waits do not count


@dataclass(eq=False)
class _Fetch:
    """Batches that are requested together, of one stream, or of several after failures."""

    sizes: list[int]  # bytes of the replies that are missing
    batches: list[int]  # in each of them
    first: int  # number of the first missing reply in the order of all, for the cache
    stream: Stream | None = None
    rival: Stream | None = None
    attempt: Any = None  # counts the stream as under way
    rival_attempt: Any = None
    server: int = -1
    rival_server: int = -1
    opened_at: float = 0.0

    def waited_s(self, since: float, now: float) -> float:
        """How long its present stream has let a reader wait that has waited since then."""
        return now - max(since, self.opened_at)


class Client:
    """A client process: several readers may share it. `zone` counts bytes from other zones."""

    def __init__(self, env: simpy.Environment, replicas: list[Replica], chooser: Chooser, zone: str = ""):
        self.env, self.replicas, self.chooser, self.zone = env, replicas, chooser, zone
        self.failovers = self.hedges = 0
        self._look_at = 0.0

    def look_later(self) -> None:
        """Look when the chooser wants that."""
        at = self.chooser.look_at
        if at and not (self.env.now <= self._look_at <= at):
            self._look_at = at
            self.env.process(self._look(at))

    def _look(self, at: float) -> Process:
        yield self.env.timeout(max(0.0, at - self.env.now))
        if self._look_at == at:
            self.chooser.look(self.env.now, self._ask)
            self._look_at = 0.0
            self.look_later()

    def _ask(self, index: int, reader: Sender | None, leaves: bool) -> schema.Load | None:
        server = self.replicas[index]
        if not server.is_up:
            return None
        if reader is not None:
            (server.present.leave_for_another if leaves else server.present.expect)(reader)
        return server.present.load()

    def leave_out(self, index: int) -> bool:
        """A replica has not answered; ask it again until it does. False if it is left out already."""
        at = self.chooser.leave_out(index, self.env.now)
        if at is None:
            return False
        self.failovers += 1
        self.env.process(self._probe(index, at))
        return True

    def _probe(self, index: int, at: float) -> Process:
        while True:
            yield self.env.timeout(at - self.env.now)
            if self.replicas[index].is_up:
                self.chooser.let_in(index, self.env.now)
                self.look_later()
                return
            at = self.chooser.probe_failed(index, self.env.now)


class Reader:
    """An iterator and the loop that takes its batches. `waits` are the seconds in each `next`."""

    def __init__(
        self,
        client: Client,
        load: Load,
        times: ServiceTimes,
        draw: Draw,
        *,
        nic: Servers | None = None,
        nic_s: float = 0.0,
        cores: Servers | None = None,
        shared_key: object = None,
        barrier: "Barrier | None" = None,
    ):
        """`nic` is the card of its host; `cores` are those that it shares (None: one of its own); `shared_key` is that
        of readers of the same rows."""
        self.env, self.client, self.load = client.env, client, load
        self.nic, self.nic_s = nic, nic_s
        self.waits: list[float] = []
        self.came_at: list[float] = []  # when each wait ended
        self.started_s = 0.0  # until the first batch
        self.taken = self.ready = self.other_zone_bytes = 0
        self.requested = 0  # batches
        self.name = Sender("", next(_NUMBERS))
        self._times, self._draw = times, draw
        self._cores = cores
        self._key = shared_key
        self._barrier = barrier
        self._connections: dict[int, Connection] = {}
        self._fetches = deque[_Fetch]()  # of which not all has been read
        self._in_flight = 0
        self._position = 0
        per_reply = reply_batches(load.batch_bytes)
        self._per_reply = per_reply
        # A row is a batch here: the window counts batches and bytes only.
        self._window = Window(
            Shard(1, (0, 1), (0, 1)), Skips.of(()), POSITION_LIMIT, True, load.batch_bytes, load.prefetch
        )
        self._signal: simpy.Event | None = None
        self._batch_signal: simpy.Event | None = None
        self.done = self.env.process(self._train())
        self.env.process(self._read())

    def wake(self) -> None:
        """Something has happened to one of its streams."""
        if self._signal is not None and not self._signal.triggered:
            self._signal.succeed()

    def note_arrival(self, replica: Replica, size: int) -> None:
        """A reply has come."""
        if self.client.zone and replica.zone != self.client.zone:
            self.other_zone_bytes += size
        self.wake()

    def _train(self) -> Process:
        env, load = self.env, self.load
        for step in range(load.steps):
            came = env.now
            if not self._in_flight:
                self._refill()
            while not self.ready:
                self._batch_signal = env.event()
                yield self._batch_signal
            self._batch_signal = None
            self.ready -= 1
            self.taken += 1
            self._in_flight -= 1
            if self._in_flight <= self._window.refill_at():
                self._refill()
            if load.step_s:  # without steps the time is in that of receiving
                yield env.timeout(self._draw.of(self._times.next_s))
            if not step:
                self.started_s = env.now - came
            if step >= load.warm_up:
                self.waits.append(env.now - came)
                self.came_at.append(env.now)
            if self._barrier is not None:
                yield self._barrier.come()
            if load.step_s:
                yield env.timeout(load.step_s)

    def _refill(self) -> None:
        idle = not self._in_flight
        for wanted in self._window.fetches(self._position, self._in_flight, idle=idle):
            batches = [min(self._per_reply, wanted.count - at) for at in range(0, wanted.count, self._per_reply)]
            sizes = [count * self.load.batch_bytes for count in batches]
            fetch = _Fetch(sizes, batches, self._position // self._per_reply)
            self._position = wanted.end
            self.requested += wanted.count
            self._in_flight += wanted.count
            self._fetches.append(fetch)
            self._open(fetch, self._connections)
        self.wake()

    def _open(
        self, fetch: _Fetch, lane: dict[int, Connection] | None = None, tried: frozenset[int] = frozenset()
    ) -> None:
        """Request what is missing of a fetch, if any replica should be asked now.

        In a `lane` it shares its connection to the replica with the fetches before it. What is requested again does
        not: its replies come before theirs.
        """
        chooser = self.client.chooser
        index = chooser.choose(self.env.now, tried, self.name)
        self.client.look_later()
        if index is None:
            return
        if chooser.hedging is not None:
            chooser.hedging.note_request()
        connection = Connection() if lane is None else lane.setdefault(index, Connection())
        fetch.stream, fetch.attempt, fetch.server = *self._start(index, fetch, connection), index
        fetch.opened_at = self.env.now

    def _start(self, index: int, fetch: _Fetch, connection: Connection) -> tuple[Stream, Any]:
        key = None if self._key is None else (self._key, fetch.first)
        stream = Stream(self, list(fetch.sizes), key)
        self.client.replicas[index].open(stream, connection)
        return stream, self.client.chooser.open(index, stream)

    def _read(self) -> Process:
        """Read the replies in order, as the client's thread does."""
        env, chooser = self.env, self.client.chooser
        while True:
            while not self._fetches:
                self._signal = env.event()
                yield self._signal
            fetch = self._fetches[0]
            since = env.now
            while not (fetch.stream is not None and fetch.stream.arrived > fetch.stream.read):
                yield from self._wait(fetch, since)
            stream = fetch.stream
            assert stream is not None
            if fetch.rival is not None:  # it came too late
                fetch.rival.end()
                fetch.rival = fetch.rival_attempt = None
            stream.note_read()
            receive_s = self._times.receive.at(fetch.sizes[0])
            end = env.now + receive_s if self._cores is None else self._cores.serve(env.now, receive_s)
            yield env.timeout(end - env.now)
            waited_s = fetch.waited_s(since, env.now)
            chooser.note_reply(fetch.server, waited_s, env.now)
            self.ready += fetch.batches[0]
            if self._batch_signal is not None and not self._batch_signal.triggered:
                self._batch_signal.succeed()
            del fetch.sizes[0], fetch.batches[0]
            fetch.first += 1
            if not fetch.sizes:
                fetch.stream = fetch.attempt = None
                self._fetches.popleft()
            elif chooser.has_better(fetch.server, waited_s, env.now):
                stream.end()
                self._open(fetch, tried=frozenset({fetch.server}))

    def _wait(self, fetch: _Fetch, since: float) -> Process:
        """Wait until something happens to a fetch; move it if its replica is lost."""
        env, client = self.env, self.client
        stream = fetch.stream
        if stream is None or stream.is_broken:
            is_news = stream is not None and client.leave_out(fetch.server)
            yield env.timeout(_CONNECT_S if is_news else FIRST_DELAY_S)
            fetch.stream = fetch.attempt = None
            self._open(fetch)
            return
        if fetch.rival is not None and fetch.rival.arrived:
            self._follow(fetch, fetch.waited_s(since, env.now))
            return
        waited_s, hedging = fetch.waited_s(since, env.now), client.chooser.hedging
        limit_s = client.chooser.limit_s
        if waited_s >= limit_s - 1e-9 and (len(client.replicas) > 1 or stream.is_cancelled):
            self._abandon(fetch.server)
            return
        until: list[float] = []
        if stream.is_cancelled:  # its server is silent
            until.append(limit_s - waited_s)
        if hedging is not None and fetch.rival is None:
            if self._batch_signal is None:  # the trainer is away: the client looks again so often
                until.append(hedging.after_s / 4)
            elif waited_s >= hedging.after_s - 1e-9:
                self._hedge(fetch, waited_s)
                if fetch.rival is None:
                    until.append(0.02)  # until one may be sent
            else:
                until.append(hedging.after_s - waited_s)
        self._signal = env.event()
        yield self._signal if not until else env.any_of([self._signal, env.timeout(min(until))])
        self._signal = None

    def _hedge(self, fetch: _Fetch, waited_s: float) -> None:
        """Ask another replica as well."""
        chooser = self.client.chooser
        assert chooser.hedging is not None
        index = chooser.choose(self.env.now, {fetch.server})
        if index is None or index == fetch.server or not chooser.hedging.take(waited_s):
            return
        self.client.hedges += 1
        (fetch.rival, fetch.rival_attempt), fetch.rival_server = self._start(index, fetch, Connection()), index

    def _follow(self, fetch: _Fetch, waited_s: float) -> None:
        """The rival has answered first."""
        assert fetch.stream is not None
        fetch.stream.end()
        if waited_s >= LOST_S:
            self._abandon(fetch.server, besides=fetch)
        fetch.stream, fetch.attempt, fetch.server = fetch.rival, fetch.rival_attempt, fetch.rival_server
        fetch.rival = fetch.rival_attempt = None

    def _abandon(self, index: int, besides: _Fetch | None = None) -> None:
        """A replica does not answer: its connection ends, with all streams of this reader there."""
        self.client.leave_out(index)
        self._connections.pop(index, None)
        for fetch in self._fetches:
            if fetch.server == index and fetch is not besides and fetch.stream is not None:
                fetch.stream.end()
                fetch.stream = fetch.attempt = None
                self._open(fetch)


class Barrier:
    """Trainers of one job begin each step together."""

    def __init__(self, env: simpy.Environment, count: int):
        self._env, self._count, self._come = env, count, 0
        self._event = env.event()

    def come(self) -> simpy.Event:
        """What to wait for: the last one of the job."""
        self._come += 1
        event = self._event
        if self._come == self._count:
            self._come, self._event = 0, self._env.event()
            event.succeed()
        return event
