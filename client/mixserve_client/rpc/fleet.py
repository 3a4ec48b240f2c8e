"""The replicas of a client: one for each address, or for each server that a name stands for at present."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from mixserve_client.errors import MixserveError, Unavailable
from mixserve_client.limited_log import LimitedLog
from mixserve_client.rpc.replica import Replica
from mixserve_client.transport.base import Transport
from mixserve_client.transport.names import NameTransport
from mixserve_client.wire import methods
from mixserve_client.wire.server import decode_server

_logger = logging.getLogger("mixserve_client")

# Names are looked up sooner when a replica is lost, but not more often than that.
_LOOK_UP_SOON_S = 1.0
_LEARN_ZONES_EVERY_S = 10.0
# A client asks no more replicas than that, as long as they answer: with thousands of trainers and replicas, all to all
# would be too many connections. Clients choose different ones.
_MOST_ASKED = 16

Start = Callable[[Callable[[], None]], None]


class Fleet:
    """The replicas of `transports`, and which ones this client asks: those of its `zone` first. Thread-safe.

    `all` are in the order of the transports, `in_turn` in the order in which this client asks them, `alone` is the only
    one, if there cannot be others.
    """

    def __init__(self, transports: Sequence[Transport], zone: str, attempt_s: float):
        """A replica has `attempt_s` seconds to say where it is."""
        self.has_begun = False
        self._entries = [_Name(one) if isinstance(one, NameTransport) else Replica(one) for one in transports]
        names = [one.look_up for one in transports if isinstance(one, NameTransport)]
        self._has_names = bool(names)
        self._look_up_every_s = min((one.every_s for one in names), default=0.0)
        self._zone = zone
        self._attempt_s = attempt_s
        self._left = list[tuple[Replica, bool]]()  # no name stands for them any more; whether they were idle lately
        self._look_up_at = self._looked_up_at = 0.0
        self._is_looking_up = False
        self._closed = False
        # Reentrant: the garbage collector may close the client in a thread that holds it.
        self._lock = threading.RLock()
        self._renew()
        if self._has_names:
            self.alone = None  # until they are looked up

    def begin(self, start: Start, look_at: Callable[[float], None], on_change: Callable[[], None]) -> None:
        """Begin to look names up, and to ask where replicas are: at the first request, so that a client that is only
        made starts no threads. `start` runs tasks in threads, `look_at` has `look` called at a time."""
        self._start, self._look_at, self._on_change = start, look_at, on_change
        self.has_begun = True
        self.look_up_soon()
        if self._zone:
            look_at(time.monotonic())

    def near(self, of: Sequence[Replica]) -> Sequence[Replica]:
        """Of some replicas in turn, those that this client asks: of its zone, if any is, and not too many."""
        near = [one for one in of if one.may_be_in(self._zone)] if self._zone else of
        return (near or of)[:_MOST_ASKED]

    def look_up_soon(self) -> None:
        """Look names up, unless that was just done."""
        if self._has_names and self.has_begun and not self._closed:
            with self._lock:
                soon = max(time.monotonic(), self._looked_up_at + _LOOK_UP_SOON_S)
                self._look_up_at = min(self._look_up_at or soon, soon)
            self._look_at(self._look_up_at)

    def look(self, now: float) -> float:
        """Do what is due; returns when something is due next, 0 for never."""
        if not self.has_begun or self._closed:
            return 0.0
        due = list[Callable[[], None]]()
        with self._lock:
            if self._look_up_at and self._look_up_at <= now and not self._is_looking_up:
                self._is_looking_up = True
                due.append(self._look_up)
            for one in self.in_turn[: _MOST_ASKED * 4] if self._zone else ():
                if one.zone is None and one.is_in and not one.is_asked_for_zone:
                    one.is_asked_for_zone = True
                    due.append(partial(self._learn_zone, one))
            # A look-up that is under way says itself when the next one is due.
            next_at = 0.0 if self._is_looking_up else self._look_up_at
        try:
            for task in due:
                self._start(task)  # a resolver, or a server, may take long
        except Unavailable:  # closed
            return 0.0
        return next_at or (now + _LEARN_ZONES_EVERY_S if self._zone else 0.0)

    def close(self) -> None:
        """Close the transports to all that there are, and were."""
        self._closed = True
        for entry in self._entries:
            if isinstance(entry, _Name):
                entry.close()
            else:
                entry.transport.close()
        for replica, _ in self._left:
            replica.transport.close()

    def _look_up(self) -> None:
        """Make `all` what the names stand for now. What they stood for before ends when it has no request under way."""
        for entry in self._entries:
            if isinstance(entry, _Name):
                self._left += [(replica, False) for replica in entry.look_up()]
        still = list[tuple[Replica, bool]]()
        for replica, was_idle in self._left:
            # Twice: a thread may have chosen it, and not counted its request yet.
            if was_idle and replica.is_idle:
                replica.transport.close()
            else:
                still.append((replica, replica.is_idle))
        self._left = still
        with self._lock:
            self._renew()
            self._looked_up_at = time.monotonic()
            self._look_up_at = self._looked_up_at + self._look_up_every_s
            self._is_looking_up = False
        self._on_change()
        if not self._closed:
            self._look_at(self._look_up_at)

    def _learn_zone(self, replica: Replica) -> None:
        try:
            replica.zone = decode_server(replica.transport.call(methods.GET_SERVER, b"", self._attempt_s)).zone
        except MixserveError:  # it does not answer, or is older than zones: its requests will say what is wrong
            replica.is_asked_for_zone = False
            return
        with self._lock:
            self._renew()

    def _renew(self) -> None:
        self.all = found = tuple(self._replicas())
        self.in_turn = sorted(found, key=lambda one: (bool(self._zone) and not one.may_be_in(self._zone), one.place))
        self.alone = found[0] if len(found) == 1 else None

    def _replicas(self) -> Iterator[Replica]:
        for entry in self._entries:
            if isinstance(entry, _Name):
                yield from entry.replicas
            else:
                yield entry


class _Name:
    """A name. While it stands for fewer servers than its look-up wants, or cannot be looked up, `as_one` is asked."""

    def __init__(self, transport: NameTransport):
        self._transport = transport
        self._as_one = Replica(transport)
        self._found: dict[str, Replica] = {}  # by target
        self._failed, self._changed = LimitedLog(_logger), LimitedLog(_logger)
        self._closed = False

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """One for each server that the name stands for."""
        return tuple(self._found.values()) or (self._as_one,)

    def look_up(self) -> list[Replica]:
        """Find the replicas; returns those that are none any more. If that fails, they are the same as before."""
        known = sorted(self.replicas, key=lambda one: (not one.is_in, one.place)) if self._found else ()
        try:
            targets = self._transport.look_up([one.transport for one in known])
        except (OSError, MixserveError) as error:
            if self._closed:  # a resolver may take longer than the client lives
                return []
            said = "the client keeps the servers that it knows" if self._found else "the client tries again"
            self._failed.warn("%s cannot be looked up, and %s: %s", self._transport.target, said, error)
            return []
        if len(targets) < self._transport.look_up.fewest:
            targets = ()
        left = [replica for target, replica in self._found.items() if target not in targets]
        if left or len(targets) > len(self._found):
            self._changed.info("%s stands for %d servers: %s", self._transport.target, len(targets) or 1, targets)
        self._found = {target: self._found.get(target) or Replica(self._transport.open(target)) for target in targets}
        return left

    def close(self) -> None:
        self._closed = True
        self._transport.close()
        for replica in self._found.values():
            replica.transport.close()
