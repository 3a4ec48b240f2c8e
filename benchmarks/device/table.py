"""A table of results, and its Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """The rows of a measurement, each with the same columns, and what to know about them."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str]

    def markdown(self) -> str:
        columns = list(self.rows[0])
        lines = [f"## {self.title}", "", f"| {' | '.join(columns)} |", "|" + " ---: |" * len(columns)]
        lines += [f"| {' | '.join(str(row[column]) for column in columns)} |" for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])
