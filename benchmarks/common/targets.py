"""A table of targets and measured values; a missed target is shown and fails nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.common.spread import Spread

Comparison = Literal[">=", "<="]


@dataclass(frozen=True)
class Row:
    """A target and its measured value; None if it was not measured."""

    name: str
    against: str
    comparison: Comparison
    target: float
    value: Spread | None

    def met(self) -> str:
        if self.value is None:
            return "not run"
        reached = self.value.median >= self.target if self.comparison == ">=" else self.value.median <= self.target
        return "yes" if reached else "**no**"


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| | against | target | measured | met |", "| --- | --- | ---: | ---: | --- |"]
    for row in rows:
        measured = "" if row.value is None else str(row.value)
        sign = {">=": "≥", "<=": "≤"}[row.comparison]
        lines.append(f"| {row.name} | {row.against} | {sign} {row.target:g} | {measured} | {row.met()} |")
    return lines
