"""Rounds of the loops -> trainer.json with every round, trainer.md with the tables, trainer.png."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.spread import Spread
from benchmarks.common.targets import table
from benchmarks.common.work import RECORDS, ROW_BYTES, WEIGHTS
from benchmarks.race.roster import RAW_GRPC
from benchmarks.trainer.roster import FLOOR, GRAIN, SHARED_MEMORY
from benchmarks.trainer.summary import Cell, Loops, cores, next_ms, pace, slowdown, step_ms_taken, waiting, waiting_ms
from benchmarks.trainer.targets import rows

_MIB = 1 << 20


def write(folder: Path, results: Mapping[str, Any]) -> str:
    """Write the files, the picture only with matplotlib; returns the text of trainer.md."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _draw(folder / "trainer.png", results)
    text = markdown(results, drawn)
    (folder / "trainer.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "trainer.md").write_text(text)
    return text


def _draw(path: Path, results: Mapping[str, Any]) -> bool:
    try:
        from benchmarks.trainer.chart import draw
    except ModuleNotFoundError:
        return False
    draw(path, Loops(results), results["names"])
    return True


def markdown(results: Mapping[str, Any], drawn: bool) -> str:
    loops = Loops(results)
    lines = [
        "# The training loop",
        "",
        "How long a training loop waits for its data: a loop of `next` and a step, on batches of 8 KiB records from",
        "servers in processes of their own where there are any, on the machine that trains. The step is a computation",
        "of one thread, the same for all, that takes as long as is said where the batch is there. The row",
        f"`{FLOOR}` is what the loop measures where it has nothing to wait for. A peer by its bare name is",
        "used as its documentation shows, beside its tuned form where it has one.",
        "",
        *(["![share of the time that is waited, and slowdown](trainer.png)", ""] if drawn else []),
        "## Waiting",
        "",
        "Percent of the loop's time that passed in `next`: medians over the rounds, and the middle half. The first",
        "batch is not in it; under Details is what it took.",
        "",
        *_table(loops, lambda name, batch, rounds: rounds.spread(waiting, name, batch)),
        "",
        "## Slowdown",
        "",
        f"Time from one step to the next by that of `{FLOOR}` in the same round: what is waited, and",
        "what data work takes from the step itself, by using CPU time, memory or Python's lock beside it.",
        "",
        *_table(loops, slowdown),
        "",
        "## What the pace asks for",
        "",
        f"MB/s (10^6) of array data that the loop takes where nothing holds it up, and what {RAW_GRPC} delivers here,",
        "with nothing planned, gathered or decoded: to a client that does nothing else, and beside steps that keep one",
        "core busy.",
        "",
        *_paces(loops),
        "",
        "## Targets",
        "",
        "Waiting and slowdown at every size and step; `next` by itself with the longest steps, since a batch is there",
        f"at their ends. Where {RAW_GRPC} does not deliver what the pace asks for, the row says so.",
        "",
        *table(rows(loops)),
        "",
        "## Details",
        "",
        f"Step by floor's: the time of the step alone, without waiting, by that of `{FLOOR}`. The first",
        "batch is timed from opening a stream of a server that runs. Cores: CPU time of trainer and servers by the",
        "time that passed; the step uses one. Peak resident memory, where what processes share counts for each.",
        "",
        *_details(loops),
        "",
        *_notes(results),
    ]
    return "\n".join(lines) + "\n"


def _table(loops: Loops, cell: Cell) -> list[str]:
    """A column for every size and length of a step."""
    steps, not_run = loops.results["steps"], loops.results["not_run"].items()
    heads = [f"{_mebibytes(one['batch'])}, {one['step_ms']} ms" for one in steps]
    lines = [_line("", *heads), "| --- |" + " ---: |" * len(steps)]
    for name in loops.results["names"]:
        cells = [cell(name, one["batch"], loops.at(one["step_ms"])) for one in steps]
        lines.append(_line(name, *(_text(one) for one in cells)))
    return lines + [_line(name, f"not run: {why}", *[""] * (len(steps) - 1)) for name, why in not_run]


def _paces(loops: Loops) -> list[str]:
    lines = [_line("batch", "step ms", "the pace", RAW_GRPC, "beside steps"), "|" + " ---: |" * 5]
    for one in loops.results["steps"]:
        raw = (_text(loops.raw(one["batch"], beside)) for beside in (False, True))
        asked = Spread.digits(pace(one["batch"], one["step_ms"]))
        lines.append(_line(_mebibytes(one["batch"]), f"{one['step_ms']}", asked, *raw))
    return lines


def _details(loops: Loops) -> list[str]:
    columns = ("batch", "step ms", "", "step took ms", "step / floor's", "waiting ms a step", "`next` p50 ms")
    columns += ("first batch ms", "cores", "trainer peak MiB", "servers peak MiB")
    lines = [_line(*columns), "| ---: | ---: | --- |" + " ---: |" * (len(columns) - 3)]
    for one in loops.results["steps"]:
        for name in loops.results["names"]:
            cells = _cells(loops, name, one["batch"], one["step_ms"])
            lines.append(_line(_mebibytes(one["batch"]), f"{one['step_ms']}", name, *cells))
    return lines


def _cells(loops: Loops, name: str, batch: int, step_ms: int) -> list[str]:
    rounds = loops.at(step_ms)

    def scaled(field: str, scale: float) -> str:
        found = rounds.spread(lambda one: float("nan") if one[field] is None else one[field] * scale, name, batch)
        return _short(found)

    return [
        _text(rounds.spread(step_ms_taken, name, batch)),
        _text(rounds.ratio(step_ms_taken, name, (FLOOR,), batch)),
        _short(rounds.spread(waiting_ms, name, batch)),
        _short(rounds.spread(next_ms, name, batch)),
        scaled("first_s", 1e3),
        _short(rounds.spread(cores, name, batch)),
        scaled("client_peak_bytes", 1 / _MIB),
        scaled("server_peak_bytes", 1 / _MIB),
    ]


def _notes(results: Mapping[str, Any]) -> list[str]:
    settings = results["settings"]
    return [
        f"- {len(WEIGHTS)} sources of {RECORDS} records of {ROW_BYTES} bytes, weights {', '.join(map(str, WEIGHTS))}.",
        f"- {settings['rounds']} rounds of {settings['seconds']} s for every cell, in turn (A B C … A B C …), each "
        f"over a fresh stream under a key of its own, after the first batch and {settings['warm_up_s']} s of steps "
        "that are not counted.",
        *_calibration(results),
        f"- {GRAIN} reads up to 500 batches ahead, and can be at that all the time that it is timed here; beside it is "
        "the same with 16 batches, which shows what comes after.",
        *_shared(results),
        f"- {results['machine']}.",
        *(f"- {name}: {', '.join(map(' '.join, packages.items()))}." for name, packages in results["versions"].items()),
    ]


def _calibration(results: Mapping[str, Any]) -> list[str]:
    took = [f"{1e3 * one['seconds']:.1f} for {one['step_ms']} ({_mebibytes(one['batch'])})" for one in results["steps"]]
    cores = [one["cpu_s"] / one["seconds"] for one in results["steps"]]
    alone = [1e3 * one["seconds"] for one in results["alone"].values()]
    return [
        f"- The step when it was calibrated, by CPU time, took {', '.join(took)} ms, and {min(cores):.2f} to "
        f"{max(cores):.2f} cores. Alone in each contestant's process the longest took {min(alone):.1f} to "
        f"{max(alone):.1f} ms.",
    ]


def _shared(results: Mapping[str, Any]) -> list[str]:
    """How much memory batches shared with the server: shows that they really came through shared memory."""
    mapped = [one["client_shared_bytes"] for one in results["rounds"] if one["name"] == SHARED_MEMORY]
    if not mapped or None in mapped:
        return []
    return [
        f"- Memory that the trainer of {SHARED_MEMORY} shared with its server: at least {min(mapped) / _MIB:.0f} MiB."
    ]


def _mebibytes(batch: int) -> str:
    return f"{batch * ROW_BYTES / _MIB:g} MiB"


def _text(value: Spread | None) -> str:
    return "" if value is None else str(value)


def _short(value: Spread | None) -> str:
    return "" if value is None or value.median == 0 else Spread.digits(value.median)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
