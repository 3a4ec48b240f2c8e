"""A race's results -> race.json with every round, race.md with the tables, race.png."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.spread import Spread
from benchmarks.common.targets import table
from benchmarks.common.work import RECORDS, ROW_BYTES, WEIGHTS
from benchmarks.race.chart import draw
from benchmarks.race.roster import TCP
from benchmarks.race.shares import shares
from benchmarks.race.summary import Rounds, batches_per_second, cpu_per_gigabyte, gigabytes, speed
from benchmarks.race.targets import earlier_rows, race_rows

_MIB = 1 << 20


def write(folder: Path, results: Mapping[str, Any]) -> str:
    """Write the three files; returns the text of race.md."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(results)
    (folder / "race.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "race.md").write_text(text)
    draw(folder / "race.png", Rounds(results["rounds"]), results["names"], results["sizes"])
    return text


def markdown(results: Mapping[str, Any]) -> str:
    rounds, names, sizes = Rounds(results["rounds"]), results["names"], results["sizes"]
    lines = [
        "# The race",
        "",
        "Batches of 8 KiB records for one client on the same machine, from servers in processes of their own where",
        "there are any. A peer by its bare name is used as its documentation shows, beside its tuned form where it has",
        "one; its file under `benchmarks/race/peers` says what was done in its favour. What this machine can do is",
        "measured in the same run (`benchmarks/race/limits`): planning and gathering in a bare loop, copying, bare",
        "transports, and two experiments that do all of the work in one thread.",
        "",
        "![throughput and CPU time against the batch size](race.png)",
        "",
        "## Throughput",
        "",
        f"GB/s of array data, and in parentheses the throughput of {TCP} by it, both medians over the rounds.",
        "",
        *throughput(rounds, names, sizes, results["not_run"]),
        "",
        "## Targets",
        "",
        "Ratios ours by theirs, round by round: the median, and the middle half.",
        "",
        *table(race_rows(rounds)),
        "",
        "Earlier targets, of what the table above says nothing about:",
        "",
        *table(earlier_rows(rounds)),
        "",
        "## Shares of the limits",
        "",
        "Medians, and the middle half; ratios are taken round by round. CPU seconds are of both ends together.",
        "",
        *shares(rounds, sizes),
        "## Details",
        "",
        "Medians over the rounds, with the middle half for throughput and ratio; p50 and p99 of the time that a batch",
        "is waited for; CPU seconds and peak resident memory of the client's and the servers' processes.",
        "",
        *details(rounds, names, sizes),
        "",
        *notes(results),
    ]
    return "\n".join(lines) + "\n"


def throughput(rounds: Rounds, names: Sequence[str], sizes: Sequence[int], not_run: Mapping[str, str]) -> list[str]:
    lines = [_line("", *(f"{size}" for size in sizes)), "| --- |" + " ---: |" * len(sizes)]
    for name in names:
        cells = []
        for size in sizes:
            here, ratio = rounds.spread(speed, name, size), rounds.ratio(speed, TCP, (name,), size)
            against = "" if ratio is None or name == TCP else f" ({_short(ratio)})"
            cells.append(f"{_short(here)}{against}")
        lines.append(_line(name, *cells))
    # An error's message may have several lines; a cell of a table has one.
    missing = [(name, " ".join(why.split())) for name, why in not_run.items()]
    return lines + [_line(name, f"not run: {why:.300}", *[""] * (len(sizes) - 1)) for name, why in missing]


def details(rounds: Rounds, names: Sequence[str], sizes: Sequence[int]) -> list[str]:
    columns = (
        "batch",
        "",
        "GB/s",
        f"{TCP} / it",
        "batches/s",
        "p50 ms",
        "p99 ms",
        "client CPU s/GB",
        "server CPU s/GB",
        "both",
        "client peak MiB",
        "server peak MiB",
    )
    lines = [_line(*columns), "| ---: | --- |" + " ---: |" * (len(columns) - 2)]
    present = ((size, name) for size in sizes for name in names if rounds.of(name, size))
    return lines + [_line(f"{size}", name, *_cells(rounds, name, size)) for size, name in present]


def _cells(rounds: Rounds, name: str, size: int) -> list[str]:
    def per_gigabyte(field: str) -> Spread | None:
        return rounds.spread(lambda one: _number(one[field]) / gigabytes(one), name, size)

    def scaled(field: str, scale: float) -> Spread | None:
        return rounds.spread(lambda one: _number(one[field]) * scale, name, size)

    return [
        str(rounds.spread(speed, name, size)),
        str(rounds.ratio(speed, TCP, (name,), size) or ""),
        _short(rounds.spread(batches_per_second, name, size)),
        _short(scaled("p50_s", 1e3)),
        _short(scaled("p99_s", 1e3)),
        _short(per_gigabyte("client_cpu_s")),
        _short(per_gigabyte("server_cpu_s")),
        _short(rounds.spread(cpu_per_gigabyte, name, size)),
        _short(scaled("client_peak_bytes", 1 / _MIB)),
        _short(scaled("server_peak_bytes", 1 / _MIB)),
    ]


def notes(results: Mapping[str, Any]) -> list[str]:
    settings, machine = results["settings"], results["machine"]
    return [
        f"- {len(WEIGHTS)} sources of {RECORDS} records of {ROW_BYTES} bytes, weights {', '.join(map(str, WEIGHTS))}.",
        f"- {settings['rounds']} rounds of {settings['seconds']} s and at least {settings['at_least']} batches, "
        "in turn (A B C … A B C …), each with a fresh stream under a key of its own, after batches that are not "
        "counted: as many as could lie ready, and for a moment.",
        *_transports(results["rounds"]),
        f"- {machine}.",
        *(f"- {'; '.join(names)}: {packages}." for packages, names in _by_packages(results["versions"]).items()),
    ]


def _transports(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """How batches of ours came, as its client says: it changes to another transport if one does not work."""
    found: dict[str, list[str]] = {}
    for name, transport in sorted({(one["name"], one["transport"]) for one in rounds if one["transport"]}):
        found.setdefault(name, []).append(transport)
    return [f"- {name} read over: {'; '.join(transports)}." for name, transports in found.items()]


def _by_packages(versions: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """The names of the contestants that ran with the same packages."""
    found: dict[str, list[str]] = {}
    for name, packages in versions.items():
        found.setdefault(", ".join(map(" ".join, packages.items())), []).append(name)
    return found


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _short(value: Spread | None) -> str:
    if value is None or value.median == 0:
        return ""
    return Spread.digits(value.median)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
