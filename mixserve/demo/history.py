"""Journal entries -> the run so far: losses, shares and waiting times by step, and kills."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

RECENT = 20


@dataclass(frozen=True)
class Step:
    """One training step. `losses` has None for a source without rows in the batch; `counts` are of all rows so far."""

    losses: tuple[float | None, ...]
    counts: tuple[int, ...]
    waited_s: float
    took_s: float


@dataclass
class History:
    """A run, as its successive trainers recorded it. A repeated step replaces the earlier one."""

    steps: dict[int, Step] = field(default_factory=dict)
    kills: list[tuple[int, str]] = field(default_factory=list)
    last_step: int = 0
    saved_step: int = 0
    trainers_started: int = 0
    digest: str | None = None

    def add(self, entry: dict[str, Any]) -> None:
        """Add one entry of the journal."""
        match entry["event"]:
            case "started":
                self.trainers_started += 1
                self.last_step = entry["step"]
            case "step":
                self.last_step = entry["step"]
                self.steps[entry["step"]] = Step(
                    tuple(entry["losses"]), tuple(entry["counts"]), entry["waited_s"], entry["took_s"]
                )
            case "saved":
                self.saved_step = entry["step"]
            case "finished":
                self.digest = entry["digest"]

    @property
    def unsaved_steps(self) -> int:
        """How many steps the trainer has made since it saved its state."""
        return self.last_step - self.saved_step

    def numbers(self) -> np.ndarray:
        """The numbers of all steps so far, ascending: int64 of shape (steps,)."""
        return np.array(sorted(self.steps))

    def losses(self, source: int) -> np.ndarray:
        """The loss of a source by step, in bits per byte; NaN if the batch had no row of it."""
        return np.array([self.steps[n].losses[source] for n in sorted(self.steps)], float)

    def recent_loss(self, source: int) -> float:
        """The mean loss of a source over the last steps that had rows of it."""
        losses = self.losses(source)
        return float(np.mean(losses[~np.isnan(losses)][-RECENT:])) if len(losses) else float("nan")

    def rows(self) -> np.ndarray:
        """The number of rows of all sources up to each step."""
        return np.array([sum(self.steps[n].counts) for n in sorted(self.steps)])

    def shares(self, source: int) -> np.ndarray:
        """The share of a source among all rows so far, by step."""
        return np.array([self.steps[n].counts[source] for n in sorted(self.steps)]) / self.rows()

    def recent_rate(self) -> float:
        """Batches per second in the last 20 steps."""
        recent = [self.steps[n] for n in sorted(self.steps)[-RECENT:]]
        return len(recent) / sum(step.took_s for step in recent) if recent else 0.0

    def wait_share(self) -> float:
        """The share of the trainers' time spent waiting for batches."""
        took_s = sum(step.took_s for step in self.steps.values())
        return sum(step.waited_s for step in self.steps.values()) / took_s if took_s else 0.0

    def wait_shares(self) -> np.ndarray:
        """The share of each step spent waiting for its batch."""
        return np.array([self.steps[n].waited_s / self.steps[n].took_s for n in sorted(self.steps)])
