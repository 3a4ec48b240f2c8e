"""deploy/grafana/dashboard.json: its panels, and their queries as Prometheus gets them from Grafana."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboard.json"
# What Grafana puts in: four times the interval of the data source, and what is chosen in the list "All".
VARIABLES = {"$__rate_interval": "1m", "$mixture": ".*"}


@dataclass(frozen=True)
class Query:
    """One of a panel."""

    row: str
    panel: str
    legend: str
    expression: str

    @property
    def metrics(self) -> set[str]:
        """The names of metrics in it, without those of series that rules record (with colons)."""
        text = re.sub(r'"[^"]*"', "", self.expression)
        return set(re.findall(r"(?<![\w:])(?:mixserve|process)_\w+", text))

    @property
    def recorded(self) -> set[str]:
        """The names of series that rules record."""
        return set(re.findall(r"mixserve:[\w:]+", self.expression))


def load() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def queries() -> list[Query]:
    found, row = list[Query](), ""
    for panel in load()["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found.append(Query(row, panel["title"], target["legendFormat"], expression))
    return found
