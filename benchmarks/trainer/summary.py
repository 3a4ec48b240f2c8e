"""Rounds of the loop -> shares of waiting, slowdowns against the floor, and the required and available rates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.spread import Spread, spread
from benchmarks.common.work import ROW_BYTES
from benchmarks.race.summary import Figures, Rounds
from benchmarks.trainer.roster import FLOOR

Cell = Callable[[str, int, Rounds], Spread | None]  # of a contestant at a batch size, in the rounds of one step


def waiting(figures: Figures) -> float:
    """Percent of the time spent in `next`."""
    return 100 * figures["waited_s"] / figures["seconds"]


def waiting_ms(figures: Figures) -> float:
    """Milliseconds of waiting per step."""
    return 1e3 * figures["waited_s"] / figures["steps"]


def next_ms(figures: Figures) -> float:
    """Milliseconds that `next` takes at the median: with a batch that is there, if steps are long enough."""
    return 1e3 * figures["next_p50_s"]


def step_ms_taken(figures: Figures) -> float:
    """Milliseconds per step, without waiting."""
    return 1e3 * figures["stepped_s"] / figures["steps"]


def loop_seconds(figures: Figures) -> float:
    """Seconds from one step to the next."""
    return figures["seconds"] / figures["steps"]


def slowdown(name: str, batch: int, rounds: Rounds) -> Spread | None:
    """The loop's time over the floor's in the same round."""
    return rounds.ratio(loop_seconds, name, (FLOOR,), batch)


def cores(figures: Figures) -> float:
    """How many cores trainer and servers kept busy; NaN if the system does not tell."""
    return float("nan") if figures["cpu_s"] is None else figures["cpu_s"] / figures["seconds"]


def pace(batch: int, step_ms: float) -> float:
    """MB/s that steps of this length consume when nothing delays them."""
    return batch * ROW_BYTES / 1e6 / (step_ms / 1e3)


@dataclass(frozen=True)
class Loops:
    """All rounds at every size and length of a step, and the rates of the raw stream."""

    results: Mapping[str, Any]

    def at(self, step_ms: int) -> Rounds:
        return Rounds([one for one in self.results["rounds"] if one["step_ms"] == step_ms])

    def raw(self, batch: int, beside: bool) -> Spread | None:
        """MB/s of the raw stream, alone or beside a core that steps keep busy."""
        rates: Sequence[Mapping[str, Any]] = self.results["rates"]
        return spread([one["megabytes_s"] for one in rates if (one["batch"], one["beside"]) == (batch, beside)])
