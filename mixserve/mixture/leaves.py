"""What plans name: the leaves of a mixture, its sources that are no mixtures, counted through the whole tree."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, UInt32

from mixserve.mixture.programs import ProgramName

AnyKeys = UInt32[np.ndarray, "2"] | UInt32[np.ndarray, "size 2"]


class Plan(NamedTuple):
    """The leaf source and the record of every position; the key to fetch it with, where a source takes keys."""

    source_ids: Int[np.ndarray, " size"]
    record_ids: Int[np.ndarray, " size"]
    fetch_keys: UInt32[np.ndarray, "size 2"] | None = None

    def at(self, slots: Int[np.ndarray, " some"]) -> "Plan":
        """The plan of some of the positions."""
        keys = None if self.fetch_keys is None else self.fetch_keys[slots]
        return Plan(self.source_ids[slots], self.record_ids[slots], keys)

    def part(self, first: int, stop: int) -> "Plan":
        """The plan of the slots [first, stop), which shares memory with this one."""
        keys = None if self.fetch_keys is None else self.fetch_keys[first:stop]
        return Plan(self.source_ids[first:stop], self.record_ids[first:stop], keys)

    @staticmethod
    def joined(parts: "Sequence[Plan]") -> "Plan":
        """The plans one after another."""
        if len(parts) == 1:
            return parts[0]
        keys = [part.fetch_keys for part in parts if part.fetch_keys is not None]
        return Plan(
            np.concatenate([part.source_ids for part in parts]),
            np.concatenate([part.record_ids for part in parts]),
            np.concatenate(keys) if keys else None,
        )


class AnyPlanner(Protocol):
    """Chooses the records of a mixture's positions: a pure function of keys and positions."""

    mode: str  # of sampling
    source_count: int
    leaf_count: int
    block_size: int  # positions are planned in aligned blocks of so many
    cost: int  # of a position: how many numbers are drawn for it; in epoch mode 1 and its part of its block's sources
    end: int | None  # the first position that does not exist

    def programs(self, *, first: bool) -> set[ProgramName]:
        """Every compiled program that plans may need, or the `first` ones, with which all plans can be made."""
        ...

    def plan(self, key: UInt32[np.ndarray, "2"], start: int, size: int) -> Plan:
        """The plan of the positions [start, start + size); `start + size` at most 2^63 - 1."""
        ...

    def plan_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Plan:
        """The plan of any positions, under one key or each under its own."""
        ...

    def begin_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Callable[[], Plan]:
        """`plan_each` under way: what waits for it and gives the plan."""
        ...

    def score_words(self, key: UInt32[np.ndarray, "2"], size: int) -> bytes:
        """A probe of what decides the choices of the first `size` positions on this machine."""
        ...


class Leaves:
    """The leaves below `source_count` sources; `nested` has the planners of those that are mixtures, by place."""

    def __init__(self, source_count: int, nested: Mapping[int, AnyPlanner]):
        self.nested = dict(nested)
        counts = [self.nested[i].leaf_count if i in self.nested else 1 for i in range(source_count)]
        self.count = sum(counts)
        self.first = np.cumsum([0, *counts])[:-1].astype(np.int32)

    @property
    def cost(self) -> int:
        """What a position costs that is drawn from the most expensive of the nested mixtures."""
        return max((planner.cost for planner in self.nested.values()), default=0)

    def resolved(self, plan: Plan) -> Plan:
        """The plan of sources as one of leaves: what was drawn from a nested mixture is drawn on there."""
        if not self.nested:
            return plan
        assert plan.fetch_keys is not None
        leaves, records, keys = self.first[plan.source_ids], plan.record_ids.copy(), plan.fetch_keys.copy()
        for source_id, planner in self.nested.items():
            here = np.flatnonzero(plan.source_ids == source_id)
            if len(here):
                inner = planner.plan_each(plan.fetch_keys[here], plan.record_ids[here])
                leaves[here] += inner.source_ids
                records[here] = inner.record_ids
                if inner.fetch_keys is not None:
                    keys[here] = inner.fetch_keys
        return Plan(leaves, records, keys)
