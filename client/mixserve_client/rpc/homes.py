"""Which replica a reader stays at, and when it moves: so that readers of many clients spread evenly."""

import random
from collections.abc import Callable, Sequence

from mixserve_client.rpc.replica import Replica
from mixserve_client.schema.requests import Sender

# A reader leaves a replica that lets it wait so many times as long as another one would, if that is at least so long:
# shorter waits may be those of threads for a core. What is known of the other one may be old, or nothing: then longer.
_SLOWER, _SLOW_S, SLOW_S = 8.0, 0.05, 0.2
# How often replicas are asked for their readers: soon after a change, less and less often while nothing changes.
_FIRST_LOOK_S, _SOON_S, _LONGEST_S = 0.4, 1.0, 6.0
_LESS_OFTEN, _SPREAD = 1.25, 0.3
_MOST_OTHERS, _MOST_HOMES = 6, 8
# A move to a replica with one reader less would only exchange the two. Of many readers a few more do not matter.
_LEAST_GAP, _LEAST_SHARE = 2, 0.125
# A trainer that is slow requests something every 20 s. One that has ended need not move.
_ACTIVE_S, _FORGOTTEN_S = 30.0, 120.0

# Asks a replica for its readers, which `Replica.load` then has; tells it that this reader comes, or leaves if True.
Ask = Callable[[Replica, Sender | None, bool], None]


class Homes:
    """The replica of each reader of a client: of each iterator, and of the calls that belong to none.

    Not thread-safe, but for `look`, which may run beside all else, once at a time. Times are of `time.monotonic()`, or
    of another clock.
    """

    def __init__(self, rng: random.Random | None = None):
        self._homes = dict[Sender, _Home]()
        self._random = rng or random.Random()
        self._pause_s = _FIRST_LOOK_S
        self.look_at = 0.0  # when to look; 0: never

    def choose(self, reader: Sender | None, among: Sequence[Replica], now: float, *, again: bool) -> Replica | None:
        """Of some replicas, the one for a request of a reader, None for one that need not stay anywhere.

        With `again`, another replica has failed the request, or is late.
        """
        home = None if reader is None else self._homes.get(reader)
        may_stay = False
        if reader is not None and home is not None:
            home.used_at = now
            replica = home.replica
            may_stay = replica in among and replica.tells is not False and not self.is_slow(replica, among, now)
            # Calls beside each other are for several replicas: there is one reader of all that belong to none.
            if may_stay and (reader.reader or replica.is_idle):
                return replica
        best = min(among, key=lambda one: one.cost(now), default=None)
        if reader is None or best is None or may_stay or again:
            return best
        self._homes[reader] = _Home(best, now)
        if home is None or home.replica is not best:
            self.look_soon(now)
        return best

    def look_soon(self, now: float) -> None:
        """Replicas have come or gone, or a reader has."""
        self._pause_s = _SOON_S if self.look_at else _FIRST_LOOK_S
        soon = now + self._pause_s * self._random.uniform(1 - _SPREAD, 1 + _SPREAD)
        self.look_at = min(self.look_at or soon, soon)

    def look(self, of: Sequence[Replica], ask: Ask, clock: Callable[[], float]) -> None:
        """Ask some of the replicas, and move readers from those with many readers to those with few."""
        now = clock()
        for reader, home in list(self._homes.items()):
            if now - home.used_at > _FORGOTTEN_S:
                self._homes.pop(reader, None)
        told = self._ask_some([one for one in of if one.may_tell(now)], ask) if len(of) > 1 else []
        is_even = True
        for reader, home in list(self._homes.items()):
            is_active = now - home.used_at < _ACTIVE_S
            if is_active and home.replica in told and (gap := self._gap(home.replica, told, clock())) is not None:
                is_even = False
                if self._moves(home.replica, gap):
                    self._move(reader, home, gap[1], ask)
        self._pause_s = min(self._pause_s * _LESS_OFTEN, _LONGEST_S) if is_even else _SOON_S
        pause_s = self._pause_s * self._random.uniform(1 - _SPREAD, 1 + _SPREAD)
        self.look_at = clock() + pause_s if self._homes else 0.0

    def _ask_some(self, of: Sequence[Replica], ask: Ask) -> list[Replica]:
        """Ask those where readers stay, and some others. Returns those that have told."""
        homes = {home.replica for home in list(self._homes.values())}
        asked = self._some([one for one in of if one in homes], _MOST_HOMES)
        asked += self._some([one for one in of if one not in asked], _MOST_OTHERS)
        for one in asked:
            ask(one, None, False)
        return [one for one in asked if one.load is not None]

    def _some(self, of: Sequence[Replica], most: int) -> list[Replica]:
        return self._random.sample(of, min(most, len(of)))

    def _gap(self, home: Replica, told: Sequence[Replica], now: float) -> tuple[int, Replica] | None:
        """By how many readers the replica has more than another one, if it should have fewer; and the other one."""
        assert home.load is not None
        # One that is slow has few readers for a reason. As that is forgotten, readers see whether it is still so.
        wait_s = max(_SLOW_S, 2 * home.expected_s(now))
        others = [one for one in told if one is not home and one.remembered_s(now) <= wait_s]
        least = min(others, key=_readers, default=None)
        if least is None:
            return None
        gap = _readers(home) - _readers(least)
        return None if gap < max(_LEAST_GAP, _LEAST_SHARE * _readers(home)) else (gap, least)

    def _moves(self, home: Replica, gap: tuple[int, Replica]) -> bool:
        # As many as half of the gap should move, and each reader there decides for itself.
        return self._random.random() < gap[0] / (2 * _readers(home))

    def _move(self, reader: Sender, home: "_Home", to: Replica, ask: Ask) -> None:
        """Let a reader go on elsewhere. Both replicas hear of it at once, or others would follow, or leave as well."""
        ask(to, reader, False)
        if to.load is not None:  # it has answered
            before, home.replica = home.replica, to
            ask(before, reader, True)

    @staticmethod
    def is_slow(home: Replica, among: Sequence[Replica], now: float) -> bool:
        """Whether readers should leave a replica for another one of `among`, as it lets them wait much longer."""
        # The mean: a machine that stands still for a moment is not slow.
        wait_s = home.mean_s(now)
        if wait_s < _SLOW_S:
            return False
        others = [one for one in among if one is not home]
        # An idle replica shows nothing. Who is alone here tries it; of several readers the numbers say which one does.
        is_alone = home.load is not None and home.load.readers < _LEAST_GAP
        known = [one.expected_s(now) for one in others if one.is_known(now) or (is_alone and one.load is not None)]
        if not known:
            return bool(others) and wait_s >= SLOW_S
        return min(known) * _SLOWER < wait_s


class _Home:
    """Where a reader stays, and when it requested something last."""

    __slots__ = ("replica", "used_at")

    def __init__(self, replica: Replica, now: float):
        self.replica, self.used_at = replica, now


def _readers(one: Replica) -> int:
    return 0 if one.load is None else one.load.readers
