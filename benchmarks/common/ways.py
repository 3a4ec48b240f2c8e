"""What `reader.read` measured of several ways to read, in turn -> a table of each beside another one."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.spread import Spread, spread

_FIGURES = ("gbs", "cpu", "call_ms")


def table(rounds: Sequence[Mapping[str, Any]], sizes: Sequence[int], beside: Mapping[str, str | None]) -> list[str]:
    """The lines of a table in Markdown. `rounds` have way, size, round, and the figures of `read`; `beside` names the
    way that each is compared with, round by round (None: with none)."""
    lines = [
        "| batch | | GB/s | | CPU s/GB | | a call, ms | |",
        "| ---: | --- | ---: | --- | ---: | --- | ---: | --- |",
    ]
    for size in sizes:
        for way, other in beside.items():
            cells = [str(size), way]
            for figure in _FIGURES:
                here = _by_round(rounds, size, way, figure)
                found = spread(list(here.values()))
                assert found is not None
                there = {} if other is None else _by_round(rounds, size, other, figure)
                cells.append(Spread.digits(found.median))
                cells.append(str(spread([here[at] / there[at] for at in here])) if there else "")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _by_round(rounds: Sequence[Mapping[str, Any]], size: int, way: str, figure: str) -> dict[int, float]:
    return {one["round"]: one[figure] for one in rounds if one["size"] == size and one["way"] == way}
