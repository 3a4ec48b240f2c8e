"""A table of targets and measured values; a missed target is shown and fails nothing."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.common.spread import Spread

Comparison = Literal[">=", "<=", "<"]
_REACHED = {">=": operator.ge, "<=": operator.le, "<": operator.lt}
_SIGNS = {">=": "≥", "<=": "≤", "<": "<"}


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
        return "yes" if _REACHED[self.comparison](self.value.median, self.target) else "**no**"


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| | against | target | measured | met |", "| --- | --- | ---: | ---: | --- |"]
    for row in rows:
        measured = "" if row.value is None else str(row.value)
        target = f"{_SIGNS[row.comparison]} {row.target:g}"
        lines.append(f"| {row.name} | {row.against} | {target} | {measured} | {row.met()} |")
    return lines
