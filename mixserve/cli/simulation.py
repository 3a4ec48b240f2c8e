"""The plan of a mixture's first positions -> what each source gets of them; no data is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rich.console import Console
from rich.progress import Progress

from mixserve.mixture.mixture import Mixture
from mixserve.mixture.sampling import EPOCH
from mixserve_client import MixClient

_AT_ONCE = 1 << 17
_WINDOWS = 50
# Distinct records are counted with a byte per record, over all sources of a mixture. For sources beyond that, the
# expected number is shown.
_MARKED_RECORDS = 1 << 28


@dataclass(frozen=True)
class Leaf:
    """A source that is not a mixture: its number of records, and its share in each schedule entry (None: unknown).

    `in_passes`: no record repeats before the pass over the source ends. Otherwise records are drawn with replacement.
    """

    name: str
    length: int
    shares: tuple[float, ...] | None
    in_passes: bool


@dataclass(frozen=True)
class Simulated:
    """The first `size` positions: rows of each leaf in each window, and the number of distinct records.

    `borders` is int64 of shape (windows + 1,): window w begins at `borders[w]`. `distinct` is None for a leaf that was
    not counted.
    """

    name: str
    size: int
    leaves: tuple[Leaf, ...]
    entries: tuple[tuple[int, int], ...]  # (first, last + 1) of the positions of each schedule entry
    borders: np.ndarray
    rows: np.ndarray  # windows x leaves
    distinct: tuple[int | None, ...]

    @cached_property
    def counts(self) -> list[int]:
        """The number of rows of each leaf."""
        return self.rows.sum(axis=0).tolist()

    def requested(self, leaf: Leaf) -> float | None:
        """The leaf's share of all positions, averaged over the schedule; None if unknown."""
        if leaf.shares is None:
            return None
        parts = zip(leaf.shares, self.entries, strict=True)
        return math.fsum(share * (stop - start) for share, (start, stop) in parts) / self.size


def simulate(client: MixClient, mixture: Mixture, name: str, size: int, key: int) -> Simulated:
    """Plan the positions [0, size) in parts, and count. Memory does not grow with `size`."""
    leaves = _leaves(mixture, size, "", outermost=True)
    windows = min(_WINDOWS, size)
    borders = np.array([size * w // windows for w in range(windows + 1)])
    rows = np.zeros(windows * len(leaves), np.int64)
    marks = _Marks([leaf.length for leaf in leaves])
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"planning {name}", total=size)
        for start in range(0, size, _AT_ONCE):
            here = min(_AT_ONCE, size - start)
            plan = client.get_plan_at(start, here, key, mixture=name)
            window = np.searchsorted(borders, np.arange(start, start + here), "right") - 1
            rows += np.bincount(window * len(leaves) + plan["source_id"], minlength=len(rows))
            marks.add(plan["source_id"], plan["record_id"])
            progress.advance(task, here)
    entries = tuple((start, stop) for _, start, stop in mixture.sampling.schedule.parts(0, size))
    return Simulated(name, size, leaves, entries, borders, rows.reshape(windows, -1), marks.distinct())


def expected_distinct(draws: int, length: int) -> float:
    """The expected number of distinct records in `draws` draws with replacement from `length` records.

    L (1 - (1 - 1/L)^n), in a form that loses no digits if L is large.
    """
    return (
        length * (1 - expected_unseen(draws, length)) if length < 2 else -length * math.expm1(_log_miss(draws, length))
    )


def expected_unseen(draws: int, length: int) -> float:
    """The expected part of `length` records that `draws` draws with replacement leave out: (1 - 1/L)^n."""
    if draws == 0:
        return 1.0
    return 0.0 if length < 2 else math.exp(_log_miss(draws, length))


def _log_miss(draws: int, length: int) -> float:
    return draws * math.log1p(-1 / length)


class _Marks:
    """Marks the records that have come. The shortest sources come first, as many as there is room for."""

    def __init__(self, lengths: Sequence[int]):
        self._starts = np.full(len(lengths), -1, np.int64)
        self._lengths = lengths
        total = 0
        for source in sorted(range(len(lengths)), key=lengths.__getitem__):
            if total + lengths[source] > _MARKED_RECORDS:
                break
            self._starts[source] = total
            total += lengths[source]
        self._seen = np.zeros(total, bool)

    def add(self, source_ids: np.ndarray, record_ids: np.ndarray) -> None:
        starts = self._starts[source_ids]
        if (self._starts < 0).any():
            kept = starts >= 0
            starts, record_ids = starts[kept], record_ids[kept]
        self._seen[starts + record_ids] = True

    def distinct(self) -> tuple[int | None, ...]:
        """The number of distinct records of each source; None for a source without room."""
        parts = zip(self._starts.tolist(), self._lengths, strict=True)
        return tuple(int(self._seen[at : at + length].sum()) if at >= 0 else None for at, length in parts)


def _leaves(mixture: Mixture, size: int, path: str, *, outermost: bool) -> tuple[Leaf, ...]:
    """The leaves, in the order of `source_id`. Leaves of a nested mixture with a schedule have unknown shares."""
    # Its schedule counts its own positions, of which the outer positions say nothing without a plan.
    schedule = mixture.sampling.schedule
    entries = [entry for entry, _, _ in schedule.parts(0, size)] if outermost else schedule.entries
    known = outermost or len(entries) == 1
    in_passes = mixture.sampling.mode == EPOCH
    found: list[Leaf] = []
    for place, (name, child) in enumerate(zip(mixture.names, mixture.children, strict=True)):
        shares = tuple(entry.shares[place] for entry in entries) if known else None
        if not isinstance(child, Mixture):
            found.append(Leaf(path + name, len(child), shares, in_passes))
            continue
        for leaf in _leaves(child, size, f"{path}{name}/", outermost=False):
            of_all = None
            if shares is not None and leaf.shares is not None:
                of_all = tuple(share * leaf.shares[0] for share in shares)
            found.append(Leaf(leaf.name, leaf.length, of_all, leaf.in_passes))
    return tuple(found)
