"""Rounds of a race -> medians, quartiles, and ratios that are taken round by round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.spread import Spread, spread
from benchmarks.common.work import ROW_BYTES

Figures = Mapping[str, Any]
Measure = Callable[[Figures], float]


def gigabytes(figures: Figures) -> float:
    return figures["batches"] * figures["batch"] * ROW_BYTES / 1e9


def speed(figures: Figures) -> float:
    """GB/s of array data."""
    return gigabytes(figures) / figures["seconds"]


def batches_per_second(figures: Figures) -> float:
    return figures["batches"] / figures["seconds"]


def cpu_per_gigabyte(figures: Figures) -> float:
    """CPU seconds of client and server together per GB; NaN if the system does not tell."""
    client, server = figures["client_cpu_s"], figures["server_cpu_s"]
    return float("nan") if client is None or server is None else (client + server) / gigabytes(figures)


@dataclass(frozen=True)
class Rounds:
    """All rounds of a race."""

    figures: Sequence[Figures]

    def of(self, name: str, batch: int) -> list[Figures]:
        return [one for one in self.figures if one["name"] == name and one["batch"] == batch]

    def values(self, measure: Measure, name: str, batch: int) -> dict[int, float]:
        """A measure of a contestant at a batch size, by the number of the round."""
        return {one["round"]: measure(one) for one in self.of(name, batch)}

    def spread(self, measure: Measure, name: str, batch: int) -> Spread | None:
        return spread(list(self.values(measure, name, batch).values()))

    def ratio(self, measure: Measure, ours: str, theirs: Sequence[str], batch: int) -> Spread | None:
        """Ours / theirs (the highest of several) round by round, over the rounds that both have run."""
        above = self.values(measure, ours, batch)
        below = [self.values(measure, name, batch) for name in theirs]
        return spread(
            [value / max(one[turn] for one in below) for turn, value in above.items() if _all_ran(below, turn)]
        )


def _all_ran(values: Sequence[Mapping[int, float]], turn: int) -> bool:
    return all(turn in one for one in values)
