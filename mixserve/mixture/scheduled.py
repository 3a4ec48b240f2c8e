"""Plans with replacement under weights that change: every position by the entry in force."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int, UInt32

from mixserve.mixture.leaves import AnyKeys, Plan
from mixserve.mixture.plan import Planner
from mixserve.mixture.programs import ProgramName
from mixserve.mixture.sampling import CATEGORICAL
from mixserve.mixture.schedule import Schedule, Shares


class ScheduledPlanner:
    """`planner_of` gives the planner of one entry's shares."""

    mode = CATEGORICAL
    grain = 1
    end: int | None = None

    def __init__(self, schedule: Schedule, planner_of: Callable[[Shares], Planner]):
        self._schedule = schedule
        self._planner_of = planner_of
        first = planner_of(schedule.entries[0].shares)
        self.source_count, self.leaf_count, self.cost = first.source_count, first.leaf_count, first.cost

    def programs(self, *, first: bool) -> set[ProgramName]:
        return self._planner_of(self._schedule.entries[0].shares).programs(first=first)  # all share them

    def plan(self, key: UInt32[np.ndarray, "2"], start: int, size: int) -> Plan:
        return self.plan_each(key, np.arange(start, start + size, dtype=np.uint64))

    def plan_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Plan:
        order = np.argsort(positions, kind="stable")
        ascending = positions[order].astype(np.uint64)
        begun: list[Callable[[], Plan]] = []
        at = 0
        while at < len(ascending):  # entries without one of the positions cost nothing
            entry, border = self._schedule.at(int(ascending[at]))
            last = len(ascending) if border is None else int(np.searchsorted(ascending, np.uint64(border)))
            here = order[at:last]
            part = keys if keys.ndim == 1 else keys[here]
            begun.append(self._planner_of(entry.shares).begin_each(part, positions[here]))
            at = last
        return Plan.joined([finish() for finish in begun]).at(np.argsort(order))

    def begin_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Callable[[], Plan]:
        return lambda: self.plan_each(keys, positions)  # each entry takes its time

    def score_words(self, key: UInt32[np.ndarray, "2"], size: int) -> bytes:
        return b"".join(self._planner_of(entry.shares).score_words(key, size) for entry in self._schedule.entries)
