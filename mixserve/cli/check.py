"""`mixserve check`: every source opened and sampled, or read whole -> tables and warnings."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from mixserve.build import examine_sources
from mixserve.cli.late_progress import late_progress
from mixserve.cli.opened import open_mixtures
from mixserve.cli.show import MOST_ROWS, Cells, show_mixture
from mixserve.mixture.epoch import EpochPlanner
from mixserve.mixture.examine import Examined
from mixserve.mixture.mixture import Mixture
from mixserve.mixture.sampling import FIRST
from mixserve_client.schema.text import show_names

_MOST_WEIGHTS = 8


def run(config_file: Path, *, placement: str | None, mixture: str | None, full: bool) -> None:
    """Build the mixtures of a configuration file, read records of each source, and show the mixtures, or one.

    Raises ConfigError.
    """
    with open_mixtures(config_file, placement=placement, mixture=mixture) as (client, nodes):
        shown = {mixture: nodes[mixture]} if mixture in nodes else dict(nodes)
        records = sum(sum(map(len, node.mixture.leaves)) for node in shown.values())
        with late_progress("reading all records" if full else "reading a sample", records if full else None) as tell:
            found = examine_sources(shown, config_file, full=full, tell=tell)
        console = Console(highlight=False)
        for name, node in shown.items() if mixture is None or mixture in nodes else [(mixture, None)]:
            described = client.mixture(name)  # raises if the name is unknown
            if node is not None:
                of_sources = _join(node.mixture, found[name])
                warnings = _warnings(node.mixture, of_sources)
                show_mixture(console, described, _columns(of_sources[:MOST_ROWS], full=full), warnings)


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
