"""Rows of results -> the tables of docs/scaling.md, each between a pair of comments that bear its name."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.spread import Spread
from benchmarks.common.work import ROOT
from benchmarks.fleet.service_times import Line, ServiceTimes
from benchmarks.fleet.sizing import CHANNELS, DNS_DATAGRAM, DNS_LARGEST, SIZES, WORKLOADS, Prices

PAGE = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results" / "fleet.json"
Row = Mapping[str, Any]
Rows = Sequence[Row]


def fill(path: Path, tables: Mapping[str, str]) -> None:
    """Replace the tables of a page. Raises ValueError if it has no place for one."""
    text = path.read_text()
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- fleet:{name} -->\n).*?(<!-- /fleet:{name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"{path} has {count} places for the table {name!r}, not 1")
    path.write_text(text)


def tables(results: Mapping[str, Any], times: ServiceTimes) -> dict[str, str]:
    """The tables by name. `results` has the rows of `study` and, as `check`, those of the check."""
    made: dict[str, Callable[[Rows], list[list[str]]]] = {
        "check": _check,
        "replicas": _replicas,
        "waits": _waits,
        "failures": _failures,
        "zones": _zones,
        "remote": _remote,
        "sweep": _sweep,
        "limits": _limits,
        "cost": _cost,
    }
    found = {name: _markdown(make(results[name])) for name, make in made.items() if results.get(name)}
    return {**found, "times": _markdown(_times(times))}


def _markdown(rows: list[list[str]]) -> str:
    head, *rest = rows
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rest])


def _check(rows: Rows) -> list[list[str]]:
    head = ["replicas", "batches/s measured", "simulated", "ratio", "p99 of `next`, ms, measured", "simulated", "ratio"]
    found = [[*head, "cores that others had"]]
    for row in rows:
        case = row["case"]
        kind = "a source that waits" if case["kind"] == "waits" else "two cores are all there is"
        found.append(
            [
                f"{case['replicas']}, {kind}",
                _number(row["measured_rate"]),
                _number(row["simulated_rate"]),
                f"{row['rate_ratio']:.2f}",
                _number(row["measured_p99_s"] * 1e3),
                _number(row["simulated_p99_s"] * 1e3),
                f"{row['p99_ratio']:.2f}" + ("" if row["is_met"] else " **(missed)**"),
                f"{row['other_processes']:.0%}",
            ]
        )
    return found


def _times(times: ServiceTimes) -> list[list[str]]:
    def line(name: str, value: Line) -> list[str]:
        return [name, _number(value.fixed_s * 1e6), _number(value.byte_s * 1e6 * (1 << 20))]

    return [
        ["processor time of", "µs for a reply", "and for each MiB"],
        line("planning", times.plan),
        line("gathering", times.gather),
        line("framing and sending, with the kernel's part", times.send),
        line("receiving, at the client", times.receive),
    ]


def _replicas(rows: Rows) -> list[list[str]]:
    head = ["each accelerator takes", "Gbit/s", "used up first", *(f"{size:,}" for size in SIZES)]
    found = [head]
    for row in rows:
        cells = [row[str(size)] for size in SIZES]
        found.append(
            [
                _takes(row["workload"]),
                str(row["nic"]),
                f"{row['first']}, at {row['capacity_s'] / 1e9:.1f} GB/s",
                *(_counts(cell["by_bytes"], cell["by_channels"]) for cell in cells),
            ]
        )
    return found


def _counts(by_bytes: int, by_channels: int) -> str:
    return f"{by_bytes:,}" if by_bytes >= by_channels else f"{by_bytes:,} ({by_channels:,})"


def _takes(name: str) -> str:
    (found,) = [one for one in WORKLOADS if one.name == name]
    size = f"{found.batch_bytes >> 20} MiB" if found.batch_bytes >= 1 << 20 else f"{found.batch_bytes >> 10} KiB"
    return f"{name}: {size} every {found.step_s:g} s"


def _waits(rows: Rows) -> list[list[str]]:
    head = ["", "accelerators", "replicas", "simulated", "`next`, p99, ms", "of the slowest, p99, ms", "busiest card"]
    found = [[*head, "first batch, p99, ms"]]
    for row in rows:
        trainers, replicas = row["simulated"]
        whole = trainers == row["accelerators"]
        found.append(
            [
                row["workload"],
                f"{row['accelerators']:,}",
                f"{row['replicas']:,}",
                "all" if whole else f"{trainers} and {replicas}",
                _number(row["p99_s"] * 1e3),
                _number(row["job_p99_s"] * 1e3),
                f"{row['nic']:.0%}",
                _number(row["first_batch_p99_s"] * 1e3),
            ]
        )
    return found


def _failures(rows: Rows) -> list[list[str]]:
    found = [["what happens", "longest wait, s", "all waits of the job, s", "`next`, p99, ms", "requests moved"]]
    for row in rows:
        moved = f"{row['failovers']:,}" + (f", {row['hedges']:,} asked twice" if row["hedges"] else "")
        waited = f"{row['waited_s']:.2f}"
        found.append([row["what"], f"{row['longest_s']:.2f}", waited, _number(row["p99_s"] * 1e3), moved])
    return found


def _zones(rows: Rows) -> list[list[str]]:
    found = [["", "bytes from other zones", "longest wait, s", "`next`, p99, ms"]]
    return found + [
        [row["what"], f"{row['other_zone']:.0%}", f"{row['longest_s']:.2f}", _number(row["p99_s"] * 1e3)]
        for row in rows
    ]


def _remote(rows: Rows) -> list[list[str]]:
    found = [["rows from other servers", "`next`, p99, ms", "longest wait, s", "busiest card", "cores"]]
    return found + [
        [
            f"{row['share']:.0%}",
            _number(row["p99_s"] * 1e3),
            f"{row['longest_s']:.2f}",
            f"{row['nic']:.0%}",
            f"{row['cores']:.0%}",
        ]
        for row in rows
    ]


def _sweep(rows: Rows) -> list[list[str]]:
    found = [["replicas", "replies that were shared", "busiest replica's cores"]]
    return found + [[str(row["replicas"]), f"{row['hits']:.0%}", f"{row['cores']:.1%}"] for row in rows]


def _limits(rows: Rows) -> list[list[str]]:
    head = ["accelerators", "replicas", f"channels of a replica (of {CHANNELS:,})", "memory for them", "card"]
    found = [[*head, "look-ups/s", "DNS answer", "first to break"]]
    for row in rows:
        answer = row["dns_bytes"]
        way = "a datagram" if answer <= DNS_DATAGRAM else "over TCP" if answer <= DNS_LARGEST else "too long"
        shares = {"channels": row["channels"] / CHANNELS, "card": row["load"], "DNS answer": answer / DNS_LARGEST}
        found.append(
            [
                f"{row['accelerators']:,}",
                f"{row['replicas']:,}",
                f"{row['channels']:,}",
                f"{row['memory'] / 1e9:.2g} GB",
                f"{row['load']:.0%}",
                f"{row['look_ups_s']:,.0f}",
                f"{answer:,} bytes, {way}",
                max(shares, key=lambda name: shares[name]),
            ]
        )
    return found


def _cost(rows: Rows) -> list[list[str]]:
    prices = Prices()
    found = [["", *(f"{size:,}" for size in SIZES)]]
    for row in rows:
        shares = [row[str(size)] for size in SIZES]
        found.append([row["workload"], *(f"{one * prices.accelerator * 100:.2g} ¢, {one:.2%}" for one in shares)])
    return found


def _number(value: float) -> str:
    return "0" if value == 0 else Spread.digits(value)
