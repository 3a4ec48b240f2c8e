"""`mixserve check --simulate`: what each source gets of a mixture's first positions, as tables and a picture."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from mixserve.cli.console import open_console
from mixserve.cli.opened import open_mixtures
from mixserve.cli.show import MOST_ROWS, show_mixture, show_rest
from mixserve.cli.simulated_picture import draw
from mixserve.cli.simulation import Simulated, expected_distinct, expected_unseen, simulate
from mixserve_client import InvalidRequest


def run(
    config_file: Path,
    *,
    size: int,
    key: int,
    mixture: str | None,
    picture: Path | None,
    placement: str | None,
) -> None:
    """Show the mixtures of a file, or one of them, and a simulation of the first `size` positions of each.

    Raises ConfigError, MixserveError and OSError.
    """
    console = open_console()
    with open_mixtures(config_file, placement=placement, mixture=mixture) as (client, nodes):
        names = (mixture,) if mixture else client.mixtures()
        if picture is not None:
            _check_picture(picture, names)
        for name in names:
            description = client.mixture(name)
            show_mixture(console, description)
            positions = size if description.end is None else min(size, description.end)
            simulated = simulate(client, nodes[name].mixture, name, positions, key)
            if positions < size:
                console.print(f"  the mixture ends at position {positions:,}: {positions:,} of {size:,} rows")
            console.print(_shares_table(simulated, key), _passes_table(simulated))
            show_rest(console, len(simulated.leaves), "sources")
            if not all(leaf.in_passes for leaf in simulated.leaves):
                console.print("  ~ is what is expected of draws with replacement, not counted")
            if find_spec("matplotlib") is None:
                console.print("  no picture: it needs matplotlib; pip install 'mixserve[demo]'", markup=False)
                continue
            path = picture or Path(f"{name.replace('/', '_')}_simulated.png")
            draw(path, simulated)
            console.print(f"  picture: {path}", markup=False, soft_wrap=True)


def _check_picture(picture: Path, names: Sequence[str]) -> None:
    """Raises InvalidRequest if the picture cannot be written: before minutes of planning, not after."""
    if picture.suffix != ".png":
        raise InvalidRequest(f"--plot must be a .png file, got {picture}")
    if not picture.parent.is_dir():
        raise InvalidRequest(f"--plot must be in a folder that exists, got {picture}")
    if len(names) > 1:
        raise InvalidRequest(
            f"--plot is for one mixture, and there are {', '.join(names)}: choose one with --mixture, or omit --plot"
        )


def _shares_table(simulated: Simulated, key: int) -> Table:
    title = f"the first {simulated.size:,} positions under key {key}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("source", overflow="fold")
    for column in ("requested", "realised", "difference", "rows"):
        table.add_column(column, justify="right")
    for leaf, count in islice(zip(simulated.leaves, simulated.counts, strict=True), MOST_ROWS):
        requested, realised = simulated.requested(leaf), count / simulated.size
        asked = ("", "") if requested is None else (f"{requested:.4%}", f"{realised - requested:+.4%}")
        table.add_row(escape(leaf.name), asked[0], f"{realised:.4%}", asked[1], f"{count:,}")
    return table


def _passes_table(simulated: Simulated) -> Table:
    table = Table()
    table.add_column("source", overflow="fold")
    for column in ("records", "passes", "different", "repeats, expected", "never seen"):
        table.add_column(column, justify="right")
    rows = zip(simulated.leaves, simulated.counts, simulated.distinct, strict=True)
    for leaf, count, distinct in islice(rows, MOST_ROWS):
        # In passes, a repeat can only come after all records. With replacement we count where memory allows it, and
        # show expected numbers (~) otherwise.
        if leaf.in_passes:
            about, repeats = "", f"{max(0, count - leaf.length):,}"
            different = float(min(count, leaf.length) if distinct is None else distinct)
        else:
            about = "~" if distinct is None else ""
            expected = expected_distinct(count, leaf.length)
            repeats, different = (
                f"~{max(0.0, count - expected):,.0f}",
                float(expected if distinct is None else distinct),
            )
        unseen = expected_unseen(count, leaf.length) if about else 1 - different / max(1, leaf.length)
        table.add_row(
            escape(leaf.name),
            f"{leaf.length:,}",
            f"{count / max(1, leaf.length):.3f}",
            f"{about}{different:,.0f}",
            repeats,
            f"{about}{unseen:.2%}",
        )
    return table
