"""Plans, planners, and leaves: the sources of a mixture that are not mixtures, numbered through the whole tree."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, UInt32

from mixserve.mixture.programs import ProgramName

AnyKeys = UInt32[np.ndarray, "2"] | UInt32[np.ndarray, "size 2"]


class Plan(NamedTuple):
    """The leaf source and the record of every position, and its fetch key if any source takes keys."""

    source_ids: Int[np.ndarray, " size"]
    record_ids: Int[np.ndarray, " size"]
    fetch_keys: UInt32[np.ndarray, "size 2"] | None = None

    def at(self, slots: Int[np.ndarray, " some"]) -> "Plan":
        """The plan of these slots, copied, in their order."""
        keys = None if self.fetch_keys is None else self.fetch_keys[slots]
        return Plan(self.source_ids[slots], self.record_ids[slots], keys)

    def part(self, first: int, stop: int) -> "Plan":
        """The plan of the slots [first, stop); it shares memory with this one."""
        keys = None if self.fetch_keys is None else self.fetch_keys[first:stop]
        return Plan(self.source_ids[first:stop], self.record_ids[first:stop], keys)

    @staticmethod
    def join(parts: "Sequence[Plan]") -> "Plan":
        """The plans, one after another, as one plan."""
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
    block_size: int  # positions are planned in aligned blocks of this size
    cost: int  # of a position: how many numbers are drawn for it; in epoch mode 1 + its part of its block's sources
    end: int | None  # the first position that the mixture does not have; None if it never ends

    def programs(self, *, first: bool) -> set[ProgramName]:
        """All compiled programs that plans may need; with `first` only some, which suffice for every plan."""
        ...

    def plan(self, key: UInt32[np.ndarray, "2"], start: int, size: int) -> Plan:
        """The plan of the positions [start, start + size); `start + size` at most 2^63 - 1."""
        ...

    def plan_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Plan:
        """The plan of positions in any order, under one key or each under its own."""
        ...

    def begin_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Callable[[], Plan]:
        """Begin `plan_each`; returns a function that waits for the plan and returns it."""
        ...

    def score_words(self, key: UInt32[np.ndarray, "2"], size: int) -> bytes:
        """The bits that decide the choices of the first `size` positions on this machine, for fingerprints."""
        ...


class Leaves:
    """The leaves below `source_count` sources; `nested` has the planners of those that are mixtures, by number."""

    def __init__(self, source_count: int, nested: Mapping[int, AnyPlanner]):
        self.nested = dict(nested)
        counts = [self.nested[i].leaf_count if i in self.nested else 1 for i in range(source_count)]
        self.count = sum(counts)
        self.first = np.cumsum([0, *counts])[:-1].astype(np.int32)

    @property
    def cost(self) -> int:
        """What a draw from the most expensive nested mixture adds to the cost of a position."""
        return max((planner.cost for planner in self.nested.values()), default=0)

    def resolve(self, plan: Plan) -> Plan:
        """Turn a plan of sources into one of leaves: a record of a nested mixture is a position, planned there."""
        if not self.nested:
            return plan
        assert plan.fetch_keys is not None
        # Copies: these may be NumPy's views of JAX arrays, which are read-only.
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
