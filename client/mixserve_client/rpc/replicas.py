"""The replicas of a server: which one gets a request, which are left out for now, and how they come back."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence, Set
from contextlib import contextmanager
from functools import partial

from mixserve_client.errors import CorruptReply, InvalidRequest, MixserveError, Overloaded, Unavailable
from mixserve_client.limited_log import LimitedLogs
from mixserve_client.metrics.client_metrics import ReplicaCounts
from mixserve_client.metrics.requests import RequestFigures, way_of
from mixserve_client.rpc.failures import Kind, kind_of
from mixserve_client.rpc.fleet import Fleet
from mixserve_client.rpc.hedging import Hedging
from mixserve_client.rpc.homes import SLOW_S, Homes
from mixserve_client.rpc.load_watch import LoadWatch
from mixserve_client.rpc.replica import Asked, Attempt, Replica, Wrong
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.rpc.watch import Watch
from mixserve_client.schema.checks import check_seconds, check_truth
from mixserve_client.schema.requests import Sender
from mixserve_client.schema.text import describe_error, shorten
from mixserve_client.transport.base import Lane, Replies, Transport

_logger = logging.getLogger("mixserve_client")

ATTEMPT_S = 5.0
FIRST_DELAY_S = 0.05  # between two rounds over all, doubled each time
# A replica that is out gets the request that it failed again, after so long, doubled each time.
_FIRST_PROBE_S, _LONGEST_PROBE_S = 1.0, 30.0
_FIRST_WRONG_S, _LONGEST_WRONG_S = 2.0, 60.0
# Calls to a replica that does not answer keep theirs for as long as an attempt lasts.
_PROBE_THREADS, _RACE_THREADS = 4, 32
_SAID = 500


class Replicas:
    """The servers of a client. Thread-safe."""

    def __init__(
        self,
        transports: Sequence[Transport],
        patience_s: float,
        attempt_s: float = ATTEMPT_S,
        *,
        hedge: bool = False,
        zone: str = "",
        figures: RequestFigures | None = None,
    ):
        if not transports:
            raise InvalidRequest("at least one server address is needed, got none")
        self.attempt_s = check_seconds("attempt_s", attempt_s)
        self.fleet = Fleet(transports, zone, self.attempt_s)
        self.homes = Homes()
        self._loads = LoadWatch(self.homes, self._usable, self.attempt_s)
        self.patience_s = check_seconds("patience_s", patience_s)
        self.first_delay_s = FIRST_DELAY_S
        self.last = self.all[0]
        self.closed = False
        self.failovers = 0
        self.figures = RequestFigures() if figures is None else figures
        self.logs = LimitedLogs(_logger)
        self._limit_s = self.attempt_s
        # With its RLock: the garbage collector may cancel a reader in a thread that holds it.
        self._changed = threading.Condition()
        self.watch = Watch(self)
        self.threads: DaemonThreadPool | None = None
        is_hedged = check_truth("hedge", hedge) and self.alone is None
        self.hedging = Hedging() if is_hedged else None
        if self.alone is None:
            count = _PROBE_THREADS + is_hedged * _RACE_THREADS
            self.threads = DaemonThreadPool(count, on_exit=_nothing, name="mixserve-replicas")

    @property
    def all(self) -> tuple[Replica, ...]:
        """All replicas, in the order in which the client was given them."""
        return self.fleet.all

    @property
    def alone(self) -> Replica | None:
        """The only replica; None if there are others, or may be."""
        return self.fleet.alone

    def choose(
        self,
        tried: Set[Replica] = frozenset(),
        fingerprint: str = "",
        *,
        in_order: bool = False,
        reader: Sender | None = None,
    ) -> Replica | None:
        """The replica for a request for the mixture `fingerprint` (empty: any), which `tried` have failed.

        That where its reader stays, or without one that where it waits least, or with `in_order` the first of the list.
        None if none should be asked now.
        """
        if not self.fleet.has_begun and self.threads is not None:
            self.fleet.begin(self.threads.start, self.watch.look_at, self._renew)
        if (alone := self.alone) is not None:
            return None if alone in tried else alone
        with self._changed:
            now = time.monotonic()
            right = [one for one in (self.all if in_order else self.fleet.in_turn) if one.is_right(fingerprint, now)]
            if right:
                left = [one for one in right if one not in tried and one.busy_until <= now]
                found = left[0] if left and in_order else self._choose(left, now, reader, again=bool(tried))
            else:  # those that are out may be back, and no other is left
                found = next((one for one in sorted(self.all, key=_probe_at) if one not in tried), None)
            if found is not None:
                self.last = found
            return found

    def _choose(self, left: Sequence[Replica], now: float, reader: Sender | None, *, again: bool) -> Replica | None:
        look_at = self.homes.look_at
        found = self.homes.choose(reader, self.fleet.near(left), now, again=again)
        if self.homes.look_at != look_at:
            self.watch.look_at(self.homes.look_at)
        return found

    def limit_s(self, rounds: int, left_s: float | None) -> float | None:
        """How long an attempt may wait for a reply, after so many rounds over all replicas; None: as long as it likes.

        `left_s` is what is left of the request's deadline.
        """
        if self.alone is not None:
            return None
        limit_s = self._limit_s * 2.0 ** min(rounds, 16)
        return limit_s if left_s is None else min(limit_s, left_s / 2)

    def has_better(self, replica: Replica, waited_s: float, fingerprint: str) -> bool:
        """Whether a stream that has waited so long for a reply should go on at another replica."""
        if waited_s < SLOW_S or self.alone is not None:
            return False
        now = time.monotonic()
        right = [one for one in self.fleet.in_turn if one.is_right(fingerprint, now)]
        return self.homes.is_slow(replica, self.fleet.near(right), now)

    @contextmanager
    def calling(self, attempt: Attempt) -> Generator[None]:
        """Count the code inside as a call under way."""
        replica = attempt.replica
        self.note_request()
        with self._changed:
            replica.calls += 1
        try:
            yield
        finally:
            with self._changed:
                replica.calls -= 1

    @property
    def counts(self) -> ReplicaCounts:
        """For the client's statistics."""
        out = sum(not one.is_in or bool(one.wrong) for one in self.all)
        return ReplicaCounts(len(self.all), out, self.failovers, 0 if self.hedging is None else self.hedging.sent)

    def open(
        self, attempt: Attempt, timeout_s: float | None, lane: Lane | None = None, *, is_hedge: bool = False
    ) -> Replies:
        """Open the stream of `attempt`. Raises what its transport raises."""
        transport = attempt.replica.transport
        method, data, replies, reply_bytes = attempt.sent
        try:
            found = transport.stream(method, data, timeout_s, replies, reply_bytes, lane)
        finally:  # only now it is known which way it went
            self.figures.note_request(method, way_of(transport.name, is_call=False))
        attempt.open(found)
        attempt.note_sent(beside=is_hedge)
        if not is_hedge:
            self.note_request()
        return found

    def call(self, replica: Replica, asked: Asked, timeout_s: float | None) -> bytes:
        """The reply of `replica`. Raises what its transport raises."""
        self.figures.note_request(asked.method, replica.call_way)
        return replica.transport.call(asked.method, asked.data, timeout_s)

    def note_request(self) -> None:
        """A stream was opened."""
        if self.hedging is not None:
            self.hedging.note_request()

    def note_reply(self, replica: Replica, waited_s: float, fingerprint: str = "", *, has_rows: bool = True) -> None:
        """A replica has answered after so long; `has_rows` if it was asked for rows."""
        if replica.out_since:
            self._let_in(replica)
        replica.has_answered = True
        if self.alone is not None:
            return
        if self.hedging is not None:
            self.hedging.note_wait(waited_s)
        if replica.wrong and replica.wrong.pop(fingerprint, None) is not None:
            self._warn(replica, "right", "%s has the right mixture again")
        replica.note_wait(waited_s, time.monotonic(), has_rows=has_rows)
        # Sources that are slow everywhere must not fail each request once more.
        self._limit_s = max(self.attempt_s, self._limit_s * 0.8, 2 * waited_s)

    def note_failure(self, attempt: Attempt, error: MixserveError, fingerprint: str = "") -> None:
        """An attempt has failed: say so, and leave its replica out for a while, if it is its own fault."""
        replica, kind, now = attempt.replica, kind_of(error), time.monotonic()
        replica.said = shorten(str(error), _SAID)
        self.figures.note_failure(error)
        if attempt.span is not None:
            attempt.span.failed(replica.transport.name, error)
        if self.closed:
            return
        if kind == Kind.LOST:
            self._leave_out(replica, attempt.asked, now)
        elif kind == Kind.BUSY and isinstance(error, Overloaded):
            replica.busy_until = now + error.retry_after_s
            self._warn(replica, kind, "%s is busy, and gets requests again later; if that lasts, add replicas: %s")
        elif kind == Kind.WRONG and self.alone is None:
            self._note_wrong(replica, fingerprint, now)
        elif isinstance(error, CorruptReply):
            self._warn(
                replica,
                "corrupt",
                "%s sent a reply that is damaged, or belongs to another request, and the client asks again. If this "
                "repeats, look for a proxy that changes replies, and for failing network cards and memory: %s",
            )
        elif kind == Kind.FAULT and self.alone is None:
            self._warn(
                replica, kind, "%s cannot answer this request, and the other replicas are asked. See its log: %s"
            )

    def _leave_out(self, replica: Replica, failed: Asked, now: float) -> None:
        with self._changed:
            if replica.out_since:
                return
            replica.out_since, replica.probes, replica.probe = now, 0, failed
            replica.probe_at = now + _FIRST_PROBE_S
        self.fleet.look_up_soon()
        if self.alone is not None:
            patience = f"for up to {self.patience_s:g} s (patience_s)"
            self._tell(replica, Kind.LOST, f"%s does not answer, and the client asks again {patience}: %s")
            return
        self.watch.look_at(replica.probe_at)
        self.failovers += 1
        self._warn(replica, Kind.LOST, "%s is left out until it answers again, and the others have its requests: %s")

    def _note_wrong(self, replica: Replica, fingerprint: str, now: float) -> None:
        if not fingerprint:
            return
        before = replica.wrong.get(fingerprint)
        times = 1 if before is None else before.times + 1
        replica.wrong[fingerprint] = Wrong(now + _delay_s(_FIRST_WRONG_S, times, _LONGEST_WRONG_S), times)
        if before is None:
            self._warn(
                replica,
                Kind.WRONG,
                "%s does not count for this mixture until it has the same one as the others; restart it with their "
                "configuration and files: %s",
            )

    def look(self, now: float) -> float:
        """Do what is due: ask replicas again that are out, look names up. Returns when something is due next, 0 for
        never."""
        found = [self._look_at_out(now), self.fleet.look(now)]
        if self.threads is not None:
            found.append(self._loads.look(now, self.threads.start, self.watch.look_at))
        return min((at for at in found if at), default=0.0)

    def _usable(self) -> Sequence[Replica]:
        """The replicas among which readers may move."""
        return self.fleet.near([one for one in self.fleet.in_turn if one.is_in and not one.wrong])

    def _look_at_out(self, now: float) -> float:
        """Ask the replicas again that are out and due; returns when the next one is due, 0 for never."""
        due = list[Replica]()
        with self._changed:
            for one in self.all:
                if one.out_since and one.probe_at <= now and not one.is_probed:
                    one.is_probed = True
                    due.append(one)
            at = [one.probe_at for one in self.all if one.out_since and not one.is_probed]
        for one in due:
            try:
                assert self.threads is not None
                self.threads.start(partial(self._probe, one))
            except (Unavailable, RuntimeError):  # closed, or the system has no thread left: it is asked later
                one.is_probed = False
        return min(at, default=0.0)

    def _probe(self, replica: Replica) -> None:
        """Send the request that failed once more: a replica that answers it is back."""
        try:
            self._ask_again(replica)
        finally:  # whatever a handler of the log raises: it would be left out for good otherwise
            replica.is_probed = False

    def _ask_again(self, replica: Replica) -> None:
        began, error = time.monotonic(), None
        try:
            is_call = not replica.probe.replies
            self.figures.note_request(replica.probe.method, way_of(replica.transport.name, is_call=is_call))
            replica.probe.send(replica.transport, 2 * self._limit_s)
        except MixserveError as raised:
            error = raised
        except Exception as raised:  # of a transport that was closed meanwhile
            error = Unavailable(describe_error(raised))
        now = time.monotonic()
        if error is None or kind_of(error) != Kind.LOST:
            if isinstance(error, Overloaded):
                replica.busy_until = now + error.retry_after_s
            replica.note_wait(now - began, now)
            self._let_in(replica)
        else:
            replica.said = shorten(str(error), _SAID)
            replica.probes += 1
            replica.probe_at = now + _delay_s(_FIRST_PROBE_S, replica.probes + 1, _LONGEST_PROBE_S)
            self.watch.look_at(replica.probe_at)

    def _let_in(self, replica: Replica) -> None:
        with self._changed:
            if not replica.out_since:
                return
            out_s, replica.out_since = time.monotonic() - replica.out_since, 0.0
        self._renew()
        self._tell(replica, "back", f"%s is back after {out_s:.1f} s")

    def _tell(self, replica: Replica, kind: object, message: str) -> None:
        """As `_warn`; but that the only server has not begun to serve is for those who want to know more."""
        if self.alone is None or replica.has_answered:
            self._warn(replica, kind, message)
        else:
            _logger.info(message, *_arguments(replica, message))

    def _warn(self, replica: Replica, kind: object, message: str) -> None:
        """Log a message about a replica: its name comes for the first `%s`, and what it said last for the second."""
        self.logs.warn((replica.place, kind), message, *_arguments(replica, message))

    def describe(self) -> str:
        """What each replica that failed said last."""
        said = [f"{one.transport.name}: {one.said}" for one in self.all if one.said]
        return "; ".join(said) or "none has answered yet"

    def close(self) -> None:
        """End the calls in flight, and the waits for a server."""
        self.closed = True
        self.wake()
        self.watch.close()
        self.fleet.close()
        if self.threads is not None:
            self.threads.close()

    def wait(self, delay_s: float, is_over: Callable[[], bool]) -> None:
        """Wait for `delay_s` seconds, or until a replica is back, the replicas are closed, or `is_over()`."""
        ins = self._ins()
        with self._changed:
            self._changed.wait_for(lambda: self.closed or is_over() or self._ins() > ins, delay_s)

    def wake(self) -> None:
        """Make waiting threads check again whether to go on."""
        with self._changed:
            self._changed.notify_all()

    def _renew(self) -> None:
        """There are other replicas than before."""
        self.wake()
        self._loads.look_soon(self.watch.look_at)

    def _ins(self) -> int:
        return sum(one.is_in for one in self.all)


def _arguments(replica: Replica, message: str) -> tuple[str, ...]:
    return (replica.transport.name, replica.said)[: message.count("%s")]


def _probe_at(replica: Replica) -> float:
    return replica.probe_at


def _delay_s(first_s: float, times: int, longest_s: float) -> float:
    return min(first_s * 2 ** min(times - 1, 16), longest_s)


def _nothing() -> None:
    pass
