"""Descriptions of mixtures -> tables on the terminal."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixserve_client import MixClient, MixtureDescription
from mixserve_client.schema.text import show_names

MOST_ROWS = 500  # a terminal takes about a millisecond for a row of a table
_MOST_ENTRIES = 20
_MOST_COLUMNS = 6


def show_file(config_file: Path, *, placement: str | None, mixture: str | None = None) -> None:
    """Build the mixtures of a configuration file, read two records of each source, and show the mixtures, or one.

    Raises ConfigError.
    """
    # Here: they load JAX, which `mixserve info` does not need.
    from mixserve.build import check_records
    from mixserve.cli.opened import open_mixtures

    with open_mixtures(config_file, placement=placement, mixture=mixture) as (client, nodes):
        check_records({mixture: nodes[mixture]} if mixture in nodes else nodes, config_file)
        _show_all(client, (mixture,) if mixture else client.mixtures(), None)


def show_server(address: str, timeout_s: float) -> None:
    """Show the mixtures of a running server. Raises MixserveError."""
    with MixClient.connect(address, patience_s=timeout_s) as client:
        _show_all(client, client.mixtures(timeout_s=timeout_s), timeout_s)


def show_mixture(console: Console, mixture: MixtureDescription) -> None:
    """Show one mixture: its sources, its schedule if it has one, its fields, and how it is drawn."""
    console.print(_sources(mixture))
    show_rest(console, len(mixture.sources), "sources")
    if len(mixture.schedule) > 1:
        _show_schedule(console, mixture)
    if mixture.leaves != tuple(source.name for source in mixture.sources):
        few = len(mixture.leaves) <= MOST_ROWS
        leaves = ", ".join(mixture.leaves) if few else show_names(mixture.leaves)
        console.print(f"  leaves, as source_id counts them: {leaves}", markup=False)
    for field in mixture.fields:
        console.print(f"  field {field.name}: {field.dtype.name}{list(field.shape)}", markup=False)
    console.print(f"  {mixture.row_bytes:,} bytes a row, up to {mixture.limits.size:,} rows a request", markup=False)
    console.print(f"  sampling {mixture.sampling}, placement {mixture.placement}")
    if _in_passes(mixture):
        end = "no end" if mixture.end is None else f"end at position {mixture.end:,}"
        console.print(f"  block size {mixture.block_size:,}, stop {mixture.stop}, {end}")
    console.print(f"  fingerprint {mixture.fingerprint}", soft_wrap=True)
    _show_doubts(console, mixture)


def _show_doubts(console: Console, mixture: MixtureDescription) -> None:
    """Say of which sources records can change without changing the fingerprint."""
    for names, doubt in (
        ([s.name for s in mixture.sources if s.content_unknown], "does not cover the content of"),
        ([s.name for s in mixture.sources if s.content_sampled], "covers only a sample of the records of"),
    ):
        if names:
            told = f"  warning: the fingerprint {doubt} {show_names(names)}: give a content_id to notice all changes"
            console.print(told, markup=False, soft_wrap=True)


def show_rest(console: Console, count: int, what: str) -> None:
    """Say how many of `count` rows a table leaves out."""
    if count > MOST_ROWS:
        console.print(f"  and {count - MOST_ROWS:,} more {what}")


def _show_all(client: MixClient, names: tuple[str, ...], timeout_s: float | None) -> None:
    console = Console(highlight=False)
    for name in names:
        show_mixture(console, client.mixture(name, timeout_s=timeout_s))


def _in_passes(mixture: MixtureDescription) -> bool:
    return mixture.sampling == "epoch"


def _sources(mixture: MixtureDescription) -> Table:
    table = Table(title=f"mixture {escape(mixture.name)}", title_justify="left", title_style="bold")
    table.add_column("source", overflow="fold")
    table.add_column("records", justify="right")
    table.add_column("share", justify="right")
    if _in_passes(mixture):
        table.add_column("first pass, in positions", justify="right")
    for source in mixture.sources[:MOST_ROWS]:
        cells = [escape(source.name), f"{source.length:,}", f"{source.weight:.4%}"]
        if _in_passes(mixture):
            cells.append("never over" if source.pass_end is None else f"{source.pass_end:,}")
        table.add_row(*cells)
    return table


def _show_schedule(console: Console, mixture: MixtureDescription) -> None:
    """Show a row per entry. If there are few sources, each has a column."""
    names = [source.name for source in mixture.sources]
    in_columns = len(names) <= _MOST_COLUMNS
    table = Table(title="  shares from each position on", title_justify="left")
    table.add_column("from", justify="right", no_wrap=True)
    for name in names if in_columns else ["shares"]:
        table.add_column(escape(name), justify="right" if in_columns else "left", overflow="fold")
    for start, shares in mixture.schedule[:_MOST_ENTRIES]:
        cells = [f"{share:.4%}" for share in shares]
        if not in_columns:
            pairs = zip(names, cells, shares, strict=True)
            cells = [", ".join(f"{escape(name)} {cell}" for name, cell, share in pairs if share > 0)]
        table.add_row(f"{start:,}", *cells)
    console.print(table)
    if len(mixture.schedule) > _MOST_ENTRIES:
        console.print(f"  and {len(mixture.schedule) - _MOST_ENTRIES:,} more entries")
