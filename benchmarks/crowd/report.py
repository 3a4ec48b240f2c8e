"""A crowd's outcomes -> crowd.json with every figure, crowd.md with the targets."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.common.machine import machine
from benchmarks.common.targets import table
from benchmarks.common.work import RECORDS, ROW_BYTES, WEIGHTS
from benchmarks.crowd.scenario import Outcome


def write(folder: Path, outcomes: Mapping[str, Outcome], not_run: Mapping[str, str], repetitions: int) -> str:
    """Write the two files; returns the text of crowd.md."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(outcomes, not_run, repetitions)
    found = {name: asdict(outcome) for name, outcome in outcomes.items()}
    results = {"machine": machine(), "repetitions": repetitions, "not_run": not_run, "scenarios": found}
    (folder / "crowd.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "crowd.md").write_text(text)
    return text


def markdown(outcomes: Mapping[str, Outcome], not_run: Mapping[str, str], repetitions: int) -> str:
    lines = [
        "# The crowd",
        "",
        "Single calls, resuming, and many clients at once, on one mixserve server with default settings in a process",
        "of its own; clients on the same machine, over TCP where nothing else is said.",
        "",
        "Ratios repetition by repetition: the median, and the middle half.",
        "",
        *table([row for outcome in outcomes.values() for row in outcome.rows]),
        "",
        *(f"- Not run: {name}: {why}" for name, why in not_run.items()),
        *(f"- {note}" for outcome in outcomes.values() for note in outcome.notes),
        f"- {repetitions} repetitions where there is a ratio of two measurements, in turn (A B A B …), under new keys.",
        f"- {len(WEIGHTS)} sources of {RECORDS} records of {ROW_BYTES} bytes, weights {', '.join(map(str, WEIGHTS))}.",
        f"- {machine()}.",
    ]
    return "\n".join(lines) + "\n"
