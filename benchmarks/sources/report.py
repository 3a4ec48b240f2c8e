"""The figures of all rounds -> the text of results/sources.md."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.spread import Spread, spread
from benchmarks.common.targets import Row, table
from benchmarks.sources.contestant import BATCH
from benchmarks.sources.roster import GRAIN, KINDS, OURS, Entry, Kind
from benchmarks.sources.work import LENGTH, RECORDS

Rounds = Sequence[Mapping[str, Any]]


def markdown(results: Mapping[str, Any]) -> str:
    rounds: Rounds = results["rounds"]
    kinds = [kind for kind in KINDS if any(one["kind"] == kind.name for one in rounds)]
    lines = [
        "# Kinds of data",
        "",
        f"Batches of {BATCH} records of {LENGTH} ids, at random among {RECORDS:,}, from files in the page cache. All",
        "read the same records in the same order, one after another in every round, each in a process of its own; the",
        "first batch of every round is compared, bit by bit. mixserve is measured as its server reads for a batch:",
        "records gathered into an array. Loaders without random access read in the order of the files.",
        "",
        "Medians over the rounds; of ratios (mixserve's rate by the other's) the median and the middle half.",
        "",
        "| kind | | records per CPU second | mixserve by it | records per second | mixserve by it | peak | open |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(line for kind in kinds for line in _lines(rounds, kind)),
        "",
        "## Targets",
        "",
        "By records per CPU second.",
        "",
        *table([row for kind in kinds for row in _targets(rounds, kind)]),
        "",
        f"- {results['machine']}; {results['rounds_count']} rounds of {results['seconds']} s each",
        "- peak is that of the process's resident memory, mapped files included; open is the time of imports and of",
        "  opening the files",
        *(f"- not run: {kind}, {name}: {why}" for kind, w in results["not_run"].items() for name, why in w.items()),
    ]
    return "\n".join(lines) + "\n"


def _lines(rounds: Rounds, kind: Kind) -> list[str]:
    lines: list[str] = []
    for entry in kind.entries:
        of_entry = _of(rounds, kind, entry)
        if not of_entry:
            continue
        cells = [kind.name if entry.name == OURS else "", entry.name]
        for rate in (_per_cpu, _per_second):
            cells.append(f"{_median(of_entry, rate):,.0f}")
            cells.append("" if entry.name == OURS else str(_ratio(rounds, kind, entry, rate)))
        cells.append(f"{max(one['peak'] for one in of_entry) / 1e6:.0f} MB")
        cells.append(f"{of_entry[0]['opened']:.2f} s")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _targets(rounds: Rounds, kind: Kind) -> list[Row]:
    rows: list[Row] = []
    for entry in kind.entries[1:]:
        least = kind.least_grain if entry.name == GRAIN else 1.0
        if least is not None:
            rows.append(Row(kind.name, entry.name, ">=", least, _ratio(rounds, kind, entry, _per_cpu)))
    return rows


def _ratio(rounds: Rounds, kind: Kind, entry: Entry, rate: Callable[[Mapping[str, Any]], float]) -> Spread | None:
    """Ours by theirs, round by round."""
    ours = {one["round"]: rate(one) for one in _of(rounds, kind, kind.entries[0])}
    return spread([ours[one["round"]] / rate(one) for one in _of(rounds, kind, entry) if one["round"] in ours])


def _of(rounds: Rounds, kind: Kind, entry: Entry) -> list[Mapping[str, Any]]:
    return [one for one in rounds if one["kind"] == kind.name and one["name"] == entry.name]


def _median(rounds: Rounds, rate: Callable[[Mapping[str, Any]], float]) -> float:
    found = spread([rate(one) for one in rounds])
    assert found is not None
    return found.median


def _per_cpu(one: Mapping[str, Any]) -> float:
    return one["records"] / one["cpu"]


def _per_second(one: Mapping[str, Any]) -> float:
    return one["records"] / one["seconds"]
