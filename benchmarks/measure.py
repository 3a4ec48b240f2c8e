"""Timings of tasks that take turns -> medians, spreads, ratios; peak memory; tables and files of results."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Cells = Mapping[str, Any]


def in_turn(tasks: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every task in each of `rounds` rounds, A B C A B C …, after one round that does not count.

    A task gets the number of its round, so that it can do something new each time.
    """
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(-1, rounds):
        # In turn, so that a machine that becomes slower for a while slows all tasks alike.
        for name, task in tasks.items():
            began = time.perf_counter()
            task(number + 1)
            if number >= 0:
                taken[name].append(time.perf_counter() - began)
    return taken


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median of ours / theirs, round by round, with its quartiles."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def peak_above_bytes(task: Callable[[], object]) -> int:
    """How far the process's resident memory rises above its present level while `task` runs, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_bytes("VmRSS")
    task()
    return _status_bytes("VmHWM") - before


def resident_bytes() -> int:
    """The process's resident memory without mapped files, in bytes (Linux)."""
    return _status_bytes("RssAnon")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not tell {field}")


def machine() -> str:
    """The machine that measured, in the detail that matters for ratios."""
    import jax

    return f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, JAX {jax.__version__}"


def report(name: str, title: str, rows: Sequence[Cells], notes: Sequence[str]) -> None:
    """Print a Markdown table and notes, and store them, with the rows as JSON, under benchmarks/results."""
    columns = list(rows[0])
    lines = [f"# {title}", "", "| " + " | ".join(columns) + " |", "|" + " ---: |" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows]
    lines += ["", *(f"- {note}" for note in notes)]
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps({"rows": rows, "notes": notes}, indent=1) + "\n")
