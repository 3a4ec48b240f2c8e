"""Spreads streams over the processes of one server; single calls keep to the address that the processes share."""

import logging
import math
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from mixserve_client.errors import DeadlineExceeded, MixserveError, ServerFault, Unavailable
from mixserve_client.limited_log import LimitedLog
from mixserve_client.transport.base import Interrupted, Lane, ReadMode, Replies, Reply, Transport
from mixserve_client.transport.endpoints import beside
from mixserve_client.wire import methods
from mixserve_client.wire.server import decode_server

_logger = logging.getLogger("mixserve_client")

PATIENCE_S = 1.0  # how long a stream may wait for answers about workers, in all
# A worker that failed is left alone for so long, doubled each time. One that did not even refuse has cost a second.
_FIRST_DELAY_S, _DELAY_AFTER_SILENCE_S, _LONGEST_DELAY_S = 1.0, 10.0, 600.0


class _Worker:
    def __init__(self, transport: Transport, last_used: int):
        self.transport = transport
        self.last_used = last_used
        # Weak: a stream that is dropped before its first reply has no end that could be noticed.
        self.streams: weakref.WeakSet[_Replies] = weakref.WeakSet()
        self.is_reached = False  # whether it has answered since it was lost
        self.failures = 0
        self.retry_at = 0.0


class WorkersTransport:
    """One server at `target`, whose processes may have addresses of their own, told by GetServer.

    A stream goes to the worker that has the fewest of this client's streams; of several, to the one that was used last,
    so that a client with one reader has buffers in one or two of them. Where no worker can be reached, as behind a
    firewall, streams go to the shared address like the calls.
    """

    def __init__(self, target: str, open_transport: Callable[[str], Transport], patience_s: float = PATIENCE_S):
        """`open_transport` makes the transport to an address. A stream waits `patience_s` seconds for answers about
        workers."""
        self._patience_s = patience_s
        self.target = target
        self._open = open_transport
        self._shared = open_transport(target)
        self._told: tuple[str, ...] = ()
        self._workers: dict[str, _Worker] = {}
        self._ask_at = 0.0
        self._asked = 0  # in vain, in a row
        self._uses = 0
        self._last: _Worker | None = None
        self._has_said = False
        self._lost = LimitedLog(_logger)
        self._closed = False
        # Reentrant: the garbage collector may close the client in a thread that holds it.
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        last, count = self._last, len(self._workers)
        if last is not None:
            return f"{last.transport.name}, one of {count} processes"
        return f"{self._shared.name}, none of its {count} processes" if count and self._has_said else self._shared.name

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        if method == methods.DEFINE_SCHEDULE:  # each worker knows schedules of its own
            for worker in self._reached():
                try:
                    worker.transport.call(method, request, timeout_s)
                except Unavailable as error:
                    self.note_loss(worker, error)
        try:
            return self._shared.call(method, request, timeout_s)
        except Unavailable:
            self._ask_at = 0.0  # its successor may have other workers
            raise

    def read_mode(self, method: str, request: bytes) -> ReadMode:
        if not self._workers and time.monotonic() < self._ask_at:
            return self._shared.read_mode(method, request)
        # The stream may go to another worker than the last one did. If that one is read in another way, it is read so
        # all the same, at some cost in speed.
        last = None if time.monotonic() >= self._ask_at else self._last
        return ReadMode.BACKGROUND if last is None else last.transport.read_mode(method, request)

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,
        reply_bytes: int,
        lane: Lane | None = None,
    ) -> Replies:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        stream = self._choose(self._patience_s if timeout_s is None else min(timeout_s / 2, self._patience_s))
        transport = self._shared if stream.worker is None else stream.worker.transport
        if deadline is not None:
            timeout_s = max(0.0, deadline - time.monotonic())
        try:
            stream.messages = transport.stream(method, request, timeout_s, replies, reply_bytes, lane)
        except BaseException as error:
            stream.end(error)
            raise
        return stream

    def close(self) -> None:
        # Without the lock: this ends the call of a thread that holds it. `_learn` closes what it makes meanwhile.
        self._closed = True
        for transport in (self._shared, *(worker.transport for worker in self._workers.values())):
            transport.close()

    def note_loss(self, worker: _Worker | None, error: Unavailable) -> bool:
        """Note that a stream was lost with `error`. Whether another process may have the rest at once."""
        self._ask_at = 0.0
        if self._closed or worker is None:
            return False
        self._fail(worker, error)
        self._lost.warn(
            "%s: one of its processes was lost, and others have its streams; the server's log says why: %s",
            self._shared.name,
            error,
        )
        return True

    def _reached(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.is_reached]

    def _choose(self, patience_s: float) -> "_Replies":
        """A stream of the worker that should have it, or of none. Raises Unavailable if the server cannot be asked."""
        until = time.monotonic() + patience_s
        if not self._lock.acquire(timeout=patience_s):
            return _Replies(self, None)
        try:
            if not self._closed and time.monotonic() >= self._ask_at:
                self._learn(until)
            worker = None if self._closed else self._pick(until)
            stream = _Replies(self, worker)
            if worker is not None:
                self._uses += 1
                worker.last_used = self._uses
                worker.streams.add(stream)
            self._last = worker
            return stream
        finally:
            self._lock.release()

    def _pick(self, until: float) -> _Worker | None:
        while usable := [worker for worker in self._workers.values() if worker.retry_at <= time.monotonic()]:
            worker = min(usable, key=lambda one: (len(one.streams), -one.last_used))
            if worker.is_reached or self._reach(worker, until):
                return worker
            if time.monotonic() >= until:
                break
        return None

    def _learn(self, until: float) -> None:
        """Ask which workers there are. Raises Unavailable."""
        try:
            told = decode_server(self._shared.call(methods.GET_SERVER, b"", _remaining_s(until))).workers
        except ServerFault:  # the answer of a server that is older than GetServer
            told = ()
        except MixserveError as error:
            if isinstance(error, Unavailable) and not self._reached():
                raise
            # The stream will say what is wrong, if it matters to it.
            self._asked += 1
            self._ask_at = time.monotonic() + _delay_s(_FIRST_DELAY_S, self._asked)
            return
        self._asked, self._ask_at = 0, math.inf
        if told != self._told:
            for worker in self._workers.values():
                worker.transport.close()
            found = {address: target for address in told if (target := beside(self.target, address)) is not None}
            # In an order of its own for each client, or all would begin with the same one.
            order = random.sample(range(len(found)), len(found))
            self._told, self._has_said, self._last = told, False, None
            self._workers = {
                address: _Worker(self._open(target), -number)
                for number, (address, target) in zip(order, found.items(), strict=True)
            }
            if self._closed:
                self.close()

    def _reach(self, worker: _Worker, until: float) -> bool:
        """Whether a worker of this server answers there: an address may lead elsewhere, or nowhere."""
        try:
            told = decode_server(worker.transport.call(methods.GET_SERVER, b"", _remaining_s(until))).workers
            if told != self._told:
                raise Unavailable("another server answers there")
        except MixserveError as error:
            self._fail(worker, error)
            if isinstance(error, DeadlineExceeded) and not self._reached():
                for other in self._workers.values():  # most likely a firewall, which would cost a second for each
                    if other is not worker:
                        self._fail(other, error)
            self._say(error)
            return False
        worker.is_reached, worker.failures = True, 0
        return True

    def _say(self, error: MixserveError) -> None:
        """Log once that no worker can be reached."""
        if self._has_said or any(worker.is_reached or not worker.failures for worker in self._workers.values()):
            return
        self._has_said = True
        _logger.warning(
            "%s: none of the %d addresses of its processes can be reached, so all batches come over this one: %s",
            self._shared.name,
            len(self._workers),
            error,
        )

    def _fail(self, worker: _Worker, error: MixserveError) -> None:
        worker.is_reached = False
        worker.failures += 1
        first_s = _DELAY_AFTER_SILENCE_S if isinstance(error, DeadlineExceeded) else _FIRST_DELAY_S
        worker.retry_at = time.monotonic() + _delay_s(first_s, worker.failures)


class _Replies:
    """A stream of one worker, None for the shared address."""

    def __init__(self, owner: WorkersTransport, worker: _Worker | None):
        self._owner = owner
        self.worker = worker
        self.messages: Replies | None = None
        self._cancelled = False

    def __iter__(self) -> Iterator[Reply]:
        assert self.messages is not None
        try:
            yield from self.messages
        except BaseException as error:
            self.end(error)
            raise
        self.end()

    def wait_until(self, deadline: float | None) -> None:
        assert self.messages is not None
        self.messages.wait_until(deadline)

    def cancel(self) -> None:
        self._cancelled = True
        if self.messages is not None:
            self.messages.cancel()

    def abandon(self) -> None:
        self._cancelled = True
        if self.messages is not None:
            self.messages.abandon()

    def end(self, error: BaseException | None = None) -> None:
        """The stream has ended. Raises Interrupted if its worker was lost, so that another one may have the rest."""
        if self.worker is not None:
            self.worker.streams.discard(self)
        if not isinstance(error, Unavailable) or isinstance(error, Interrupted) or self._cancelled:
            return
        if self._owner.note_loss(self.worker, error):
            raise Interrupted("a process of the server was lost; another one has the rest") from error


def _delay_s(first_s: float, failures: int) -> float:
    return min(first_s * 2 ** min(failures - 1, 16), _LONGEST_DELAY_S)


def _remaining_s(until: float) -> float:
    """Seconds until the time `until`, at least 1 ms, so that an answer that is at hand is not missed."""
    return max(0.001, until - time.monotonic())
