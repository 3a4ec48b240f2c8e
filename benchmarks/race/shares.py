"""Ours as a share of the limits, batch size by batch size: the lines of Markdown tables."""

from collections.abc import Sequence

from benchmarks.race.roster import GRPC, IN_PROCESS, LIMITS, SHARED_MEMORY, TCP
from benchmarks.race.summary import Rounds, cpu_per_gigabyte, speed

_OURS = (IN_PROCESS, SHARED_MEMORY, TCP, GRPC)


def shares(rounds: Rounds, sizes: Sequence[int]) -> list[str]:
    """A table for each size: speeds and CPU time, and ours by each limit, round by round."""
    return [line for size in sizes for line in (f"### Batches of {size}", "", *_table(rounds, size), "")]


def _table(rounds: Rounds, size: int) -> list[str]:
    columns = ("", "GB/s", "CPU s/GB", *(f"{ours} / it" for ours in _OURS))
    lines = [_line(*columns), "| --- |" + " ---: |" * (len(columns) - 1)]
    for name in (*_OURS, *LIMITS):
        if rounds.of(name, size):
            figures = [rounds.spread(measure, name, size) for measure in (speed, cpu_per_gigabyte)]
            ratios = [rounds.ratio(speed, ours, (name,), size) if name in LIMITS else None for ours in _OURS]
            lines.append(_line(name, *("" if one is None else str(one) for one in (*figures, *ratios))))
    return lines


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
