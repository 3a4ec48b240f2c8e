"""`mixserve check`: every source opened and sampled, or read whole -> tables and warnings."""

from collections.abc import Collection, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from mixserve.build import LeaveOut, read_lists, skipping
from mixserve.checked import examine_sources, list_undecodable
from mixserve.cli.console import open_console
from mixserve.cli.late_progress import late_progress
from mixserve.cli.opened import open_mixtures
from mixserve.cli.show import MOST_ROWS, Cells, show_mixture
from mixserve.config import load_config
from mixserve.mixture.epoch import EpochPlanner
from mixserve.mixture.examine import Examined
from mixserve.mixture.mixture import Mixture
from mixserve.mixture.sampling import FIRST
from mixserve.mixture.scan import Scanned
from mixserve.sources.skipped import path_of
from mixserve_client.schema.text import shorten, show_names

_MOST_WEIGHTS = 8
_MOST_SKIPPED = 5  # of a source, whose reasons are shown


def run(config_file: Path, *, placement: str | None, mixture: str | None, full: bool) -> None:
    """Build the mixtures of a configuration file, read records of each source, and show the mixtures, or one. With
    `full`, list the records to leave out first.

    Raises ConfigError.
    """
    scanned = _list_undecodable(config_file, mixture) if full else {}
    # Of other mixtures than the one that was asked for, there may be no lists yet.
    leave_out = _listed_only(config_file, {name for name, _ in scanned}) if scanned else None
    with open_mixtures(config_file, placement=placement, mixture=mixture, leave_out=leave_out) as (client, nodes):
        shown = {mixture: nodes[mixture]} if mixture in nodes else dict(nodes)
        records = sum(sum(map(len, node.mixture.leaves)) for node in shown.values())
        with late_progress("reading all records" if full else "reading a sample", records if full else None) as tell:
            found = examine_sources(shown, config_file, full=full, tell=tell, scanned=scanned)
        console = open_console()
        for name, node in shown.items() if mixture is None or mixture in nodes else [(mixture, None)]:
            described = client.mixture(name)  # raises if the name is unknown
            if node is not None:
                of_sources = _join(node.mixture, found[name])
                warnings = _warnings(node.mixture, of_sources)
                show_mixture(console, described, _columns(of_sources[:MOST_ROWS], full=full), warnings)
        _show_scanned(console, config_file, scanned)


def _list_undecodable(config_file: Path, mixture: str | None) -> dict[tuple[str, str], Scanned]:
    """Write the list of the records to leave out; what was found, by mixture and source."""
    config = load_config(config_file)
    if mixture is not None and mixture not in config.mixtures:
        return {}
    chosen = {name: sources for name, sources in skipping(config).items() if mixture in (None, name)}
    if not any(chosen.values()):
        return {}
    with late_progress("looking for records that cannot be decoded", None) as tell:
        return list_undecodable(config, config_file, mixture, tell)


def _listed_only(config_file: Path, mixtures: Collection[str]) -> LeaveOut:
    lists = read_lists(config_file)

    def leave_out(mixture: str, name: str, source: Any, content_id: str | None) -> Any:
        return lists.leave_out(mixture, name, source, content_id) if mixture in mixtures else source

    return leave_out


def _show_scanned(console: Console, config_file: Path, scanned: Mapping[tuple[str, str], Scanned]) -> None:
    """Say how many records of each source are left out, and what is wrong with the first few."""
    for (mixture, source), found in scanned.items():
        where = f"{shorten(mixture, 100)}: {shorten(source, 100)}"
        console.print(f"{where}: {len(found.bad):,} records left out", markup=False, soft_wrap=True)
        for record_id, why in islice(found.bad.items(), _MOST_SKIPPED):
            console.print(f"  record {record_id:,}: {why}", markup=False, soft_wrap=True)
        if len(found.bad) > _MOST_SKIPPED:
            console.print(f"  and {len(found.bad) - _MOST_SKIPPED:,} more")
    if scanned:
        path = path_of(config_file)
        console.print(f"{path} lists them; copy it to all servers of the mixture", markup=False, soft_wrap=True)


def show_bytes(count: int) -> str:
    """A number of bytes with two or three digits, such as 720 kB or 1.8 TB."""
    return f"{count} B" if count < 1000 else f"{_show_scaled(count, ('k', 'M', 'G', 'T', 'P', 'E'))}B"


def _show_rate(rate: float) -> str:
    if rate < 1000:
        return f"{rate:.2g}" if rate < 99.5 else f"{rate:.0f}"
    return _show_scaled(rate, ("k", "M", "G"))


def _show_scaled(count: float, units: Sequence[str]) -> str:
    place = -1
    while place < 0 or (count >= 999.5 and place + 1 < len(units)):
        count, place = count / 1000, place + 1
    return f"{count:.1f} {units[place]}" if count < 9.95 else f"{count:.0f} {units[place]}"


def _join(mixture: Mixture, leaves: Sequence[Examined]) -> list[Examined]:
    """What is known of each source, from what is known of the leaves."""
    counts = [len(child.leaves) if isinstance(child, Mixture) else 1 for child in mixture.children]
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return [Examined.joined(leaves[first:stop]) for first, stop in pairwise(starts)]


def _columns(sources: Sequence[Examined], *, full: bool) -> list[Cells]:
    """The columns in which a source has something; the first is that of sizes."""
    speeds = ["" if source.rate is None else _show_rate(source.rate) for source in sources]
    columns: list[Cells] = [
        ["bytes", *("" if source.nbytes is None else show_bytes(source.nbytes) for source in sources)]
    ]
    if any(speeds):
        columns.append(["records/s", *speeds])
    if any(source.too_long for source in sources):
        columns.append(["too long", *map(_show_long, sources)])
    if any(source.ids for source in sources):
        columns.append(["ids" if full else "ids in\na sample", *map(_show_ids, sources)])
    return columns


def _show_long(source: Examined) -> str:
    long = source.too_long
    if long is None:
        return ""
    return f"{long.records:,}\n{long.values / long.all_values:.1%} cut" if long.records else "0"


def _show_ids(source: Examined) -> str:
    if len(source.ids) == 1:
        ((low, high),) = source.ids.values()
        return f"{low:,} to {high:,}"
    return "\n".join(f"{name}: {low:,} to {high:,}" for name, (low, high) in source.ids.items())


def _warnings(mixture: Mixture, sources: Sequence[Examined]) -> list[str]:
    said = [f"{name}: {text}" for name, source in zip(mixture.names, sources, strict=True) for text in source.warnings]
    return [*said, *_vocabularies(mixture, sources), *_left_out(mixture)]


def _vocabularies(mixture: Mixture, sources: Sequence[Examined]) -> list[str]:
    """Sources without a vocabulary's size whose ids are not below that of another source."""
    known = [(source.vocab_size, name) for name, source in zip(mixture.names, sources, strict=True)]
    largest = max(((size, name) for size, name in known if size is not None), default=None)
    if largest is None:
        return []
    size, of = largest
    return [
        f"{name}: ids up to {high:,}, and the vocab_size of {of} is {size:,}"
        for name, source in zip(mixture.names, sources, strict=True)
        if source.vocab_size is None and (high := max((ids[1] for ids in source.ids.values()), default=0)) >= size
    ]


def _left_out(mixture: Mixture) -> list[str]:
    """Which records a mixture that stops with its first source never gives."""
    planner = mixture.planner
    if mixture.sampling.stop != FIRST or not isinstance(planner, EpochPlanner) or planner.end is None:
        return []
    got = planner.counts.at(planner.end).tolist()
    drawn = [number for number in range(len(got)) if number not in _without_share(mixture)]
    short = [number for number in drawn if got[number] < mixture.lengths[number]]
    if not short:
        return []
    read = ", ".join(
        f"{mixture.names[number]} after {got[number]:,} of its {mixture.lengths[number]:,} records"
        for number in short[:_MOST_WEIGHTS]
    )
    rest = "" if len(short) <= _MOST_WEIGHTS else f", and {len(short) - _MOST_WEIGHTS:,} more sources before their ends"
    said = f"stop: first_exhausted ends {read}{rest}"
    if len(mixture.sampling.schedule.entries) > 1:
        return [said]
    weights = [mixture.lengths[number] for number in drawn]
    names = show_names([mixture.names[number] for number in drawn])
    if len(drawn) > _MOST_WEIGHTS:
        return [f"{said}; weights that are the numbers of records read all of {names}"]
    return [f"{said}; the weights {' and '.join(map(str, weights))} read all of {names}"]


def _without_share(mixture: Mixture) -> set[int]:
    entries = mixture.sampling.schedule.entries
    return {number for number in range(len(mixture.names)) if all(entry.shares[number] == 0 for entry in entries)}
