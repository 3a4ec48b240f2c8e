"""Plans with replacement under a schedule: each position is planned under the entry in force there."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, UInt32

from mixserve.mixture.leaves import AnyKeys, Plan
from mixserve.mixture.plan import Planner
from mixserve.mixture.programs import ProgramName
from mixserve.mixture.sampling import CATEGORICAL
from mixserve.mixture.schedule import Schedule, Shares
from mixserve_client.forks import renew_in_forks

_MOST_PLANNERS = 256
_AT_ONCE = 256
# An entry costs this many draws besides those of its positions.
_ENTRY_DRAWS = 8192
_ENTRIES = 16  # the distance of entries is averaged over this many
_FAR = 1 << 63


class Planners:
    """The planners of one mixture under any shares: a cache of the 256 most recently used ones."""

    def __init__(self, first: Planner, shares: Shares):
        self._first = first
        self._cached = OrderedDict({shares: first})
        self._renew()
        renew_in_forks(self, Planners._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def of(self, all_shares: Sequence[Shares]) -> list[Planner]:
        """The planner of each of these shares, in order. Making many takes little longer than making one."""
        with self._lock:
            found = {shares: self._cached[shares] for shares in all_shares if shares in self._cached}
        missing = list(dict.fromkeys(shares for shares in all_shares if shares not in found))
        if missing:
            found |= zip(missing, self._first.reweight(missing), strict=True)
        # Made without the lock, so that readers of cached planners need not wait. Two threads may make the same one.
        with self._lock:
            for shares in list(found)[-_MOST_PLANNERS:]:
                self._cached[shares] = found[shares]
                self._cached.move_to_end(shares)
            while len(self._cached) > _MOST_PLANNERS:
                self._cached.popitem(last=False)
        return [found[shares] for shares in all_shares]


class ScheduledPlanner:
    """Plans each position with the planner of the shares in force there."""

    mode = CATEGORICAL
    block_size = 1
    end: int | None = None

    def __init__(self, schedule: Schedule, planners: Planners, like: "ScheduledPlanner | None" = None):
        """`like` is the planner of another schedule; what it knows of the entries that both share is reused."""
        self._schedule = schedule
        self._planners = planners
        (first,) = planners.of([schedule.entries[0].shares])
        self._first = first
        self.source_count, self.leaf_count = first.source_count, first.leaf_count
        self._distance = self._least_distance(like)
        self.cost = first.cost + _ENTRY_DRAWS // self._distance

    def programs(self, *, first: bool) -> set[ProgramName]:
        return self._first.programs(first=first)  # programs do not depend on weights

    def plan(self, key: UInt32[np.ndarray, "2"], start: int, size: int) -> Plan:
        return self.plan_each(key, np.arange(start, start + size, dtype=np.uint64))

    def plan_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Plan:
        order = np.argsort(positions, kind="stable")
        ascending = positions[order].astype(np.uint64)
        parts: list[tuple[Shares, np.ndarray]] = []
        at = 0
        while at < len(ascending):  # not entry by entry: most have none of these positions
            entry, border = self._schedule.at(int(ascending[at]))
            last = len(ascending) if border is None else int(np.searchsorted(ascending, np.uint64(border)))
            parts.append((entry.shares, order[at:last]))
            at = last
        # In groups, so that no more planners are in use at the same time than are cached.
        planned = list[Plan]()
        for begin in range(0, len(parts), _AT_ONCE):
            some = parts[begin : begin + _AT_ONCE]
            begun: list[Callable[[], Plan]] = []
            for planner, (_, here) in zip(self._planners.of([shares for shares, _ in some]), some, strict=True):
                begun.append(planner.begin_each(keys if keys.ndim == 1 else keys[here], positions[here]))
            planned += [finish() for finish in begun]
        return Plan.join(planned).at(np.argsort(order))

    def begin_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Callable[[], Plan]:
        return lambda: self.plan_each(keys, positions)  # waits for each group of entries, so nothing can begin here

    def score_words(self, key: UInt32[np.ndarray, "2"], size: int) -> bytes:
        entries = self._schedule.entries
        some = ([entry.shares for entry in entries[at : at + _AT_ONCE]] for at in range(0, len(entries), _AT_ONCE))
        return b"".join(Planner.score_words_of(self._planners.of(shares), key, size) for shares in some)

    def _least_distance(self, like: "ScheduledPlanner | None") -> int:
        """How many positions lie between two entries, averaged over the 16 that are closest together."""
        # Entries that both schedules share were measured for `like`; only windows that reach new entries are left.
        entries, known, least = self._schedule.entries, 0, _FAR
        if like is not None:
            known = max(0, entries.shared_with(like._schedule.entries) - _ENTRIES)
            least = like._distance
        starts = [entry.start for entry in entries[known:]]
        found = [(last - first) // _ENTRIES for first, last in zip(starts, starts[_ENTRIES:], strict=False)]
        return max(1, min([least, *found]))
