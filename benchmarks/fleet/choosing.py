"""How a client of the simulation chooses among replicas: by the client's own code, with the simulation's clock.

`Fleet.near`, `Homes`, `Replica` and `Hedging` are those of the client. What `Replicas` does around them reads the
system's clock, and is repeated here: who is left out, for how long, and when a stream moves.
"""

import random
from collections.abc import Callable, Sequence, Set
from typing import Any

from mixserve_client.rpc.fleet import Fleet
from mixserve_client.rpc.hedging import Hedging
from mixserve_client.rpc.homes import SLOW_S, Homes
from mixserve_client.rpc.replica import Asked, Attempt, Replica
from mixserve_client.rpc.replicas import (
    _FIRST_PROBE_S,
    _LONGEST_PROBE_S,
    ATTEMPT_S,
)
from mixserve_client.schema.requests import Sender
from mixserve_client.schema.server import Load, ServerDescription
from mixserve_client.wire.server import encode_server

_ASKED = Asked("stream", b"", 1, 1)

# Asks a replica for its load, None if it does not answer; it is told of a reader that comes, or leaves if True.
AskLoad = Callable[[int, Sender | None, bool], Load | None]


class _Server:
    """What the client's code asks of a transport here: a name, and the zone of the server."""

    def __init__(self, index: int, zone: str):
        self.index = index
        self.name = self.target = f"replica-{index}"
        self._zone = zone

    def call(self, *_: Any) -> bytes:
        return encode_server(ServerDescription("", zone=self._zone))


class Chooser:
    """The replicas of one client, numbered as in the simulation."""

    def __init__(
        self,
        zones: Sequence[str],
        zone: str = "",
        *,
        seed: int = 0,
        hedge: bool = False,
        attempt_s: float = ATTEMPT_S,
    ):
        """`zones` are those of the replicas, and `zone` is the client's (empty: it does not matter)."""
        before = random.getstate()
        random.seed(seed)  # replicas have random places
        try:
            self._fleet = Fleet([_Server(index, name) for index, name in enumerate(zones)], zone, attempt_s)
        finally:
            random.setstate(before)
        self._homes = Homes(random.Random(seed))
        self.hedging = Hedging() if hedge and len(zones) > 1 else None
        self.limit_s = self._attempt_s = attempt_s
        self.by_index = {one.transport.index: one for one in self._fleet.all}
        if zone:
            self._fleet.begin(lambda task: task(), lambda _: None, lambda: None)
            while any(one.zone is None for one in self._fleet.all):
                self._fleet.look(0.0)

    def choose(self, now: float, tried: Set[int] = frozenset(), reader: Sender | None = None) -> int | None:
        """The number of the replica for a request of a reader; None if none should be asked now."""
        right = [one for one in self._fleet.in_turn if one.is_right("", now) and self._index(one) not in tried]
        found = self._homes.choose(reader, self._fleet.near(right), now, again=bool(tried))
        if found is None and all(not one.is_in for one in self._fleet.all):
            out = sorted(self._fleet.all, key=lambda one: one.probe_at)
            found = next((one for one in out if self._index(one) not in tried), None)
        return None if found is None else self._index(found)

    @property
    def look_at(self) -> float:
        """When to `look`; 0: never."""
        return self._homes.look_at if len(self.by_index) > 1 else 0.0

    def look(self, now: float, ask: AskLoad) -> None:
        """Compare the loads of replicas; readers may move."""

        def note(replica: Replica, reader: Sender | None, leaves: bool) -> None:
            load = ask(self._index(replica), reader, leaves)
            if load is None:
                replica.load = None
            else:
                replica.note_load(load, now)

        usable = [one for one in self._fleet.in_turn if one.is_in]
        self._homes.look(self._fleet.near(usable), note, lambda: now)

    def open(self, index: int, stream: object) -> Attempt:
        """Count a stream as under way, until what is returned is dropped."""
        attempt = Attempt(self.by_index[index], _ASKED)
        attempt.open(stream)
        return attempt

    def note_reply(self, index: int, waited_s: float, now: float) -> None:
        """A reply has come after its reader waited so long."""
        self.by_index[index].note_wait(waited_s, now)
        if self.hedging is not None:
            self.hedging.note_wait(waited_s)
        self.limit_s = max(self._attempt_s, self.limit_s * 0.8, 2 * waited_s)

    def has_better(self, index: int, waited_s: float, now: float) -> bool:
        """Whether a stream that has waited so long should go on elsewhere."""
        if waited_s < SLOW_S or len(self.by_index) == 1:
            return False
        right = [one for one in self._fleet.in_turn if one.is_right("", now)]
        return self._homes.is_slow(self.by_index[index], self._fleet.near(right), now)

    def leave_out(self, index: int, now: float) -> float | None:
        """Leave a replica out; returns when it is asked again. None if it is left out already."""
        replica = self.by_index[index]
        if not replica.is_in:
            return None
        replica.out_since, replica.probes = max(now, 1e-9), 0
        replica.probe_at = now + _FIRST_PROBE_S
        return replica.probe_at

    def probe_failed(self, index: int, now: float) -> float:
        """A replica that is out has not answered; returns when it is asked again."""
        replica = self.by_index[index]
        replica.probes += 1
        replica.probe_at = now + min(_FIRST_PROBE_S * 2.0**replica.probes, _LONGEST_PROBE_S)
        return replica.probe_at

    def let_in(self, index: int, now: float) -> None:
        """A replica answers again."""
        self.by_index[index].out_since = 0.0
        self._homes.look_soon(now)

    @staticmethod
    def _index(replica: Replica) -> int:
        return replica.transport.index
