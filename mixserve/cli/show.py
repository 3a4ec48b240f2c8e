"""Descriptions of mixtures -> tables on the terminal."""

from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixserve.cli.connecting import Connection
from mixserve.cli.console import open_console
from mixserve_client import MixClient, MixtureDescription, ServerFault
from mixserve_client.rpc.deadlines import deadline_in
from mixserve_client.schema.text import show_names
from mixserve_client.wire import methods
from mixserve_client.wire.server import decode_server

MOST_ROWS = 500  # a terminal takes about a millisecond for a row of a table
_MOST_ENTRIES = 20
_MOST_COLUMNS = 6
_LEAST_NAME = 12  # longer names are folded before a table is split
Cells = list[str]


def show_server(address: str, connection: Connection, timeout_s: float) -> None:
    """Show the mixtures of a running server. Raises MixserveError."""
    with connection.connect(address, patience_s=timeout_s) as client:
        console = open_console()
        for name in client.mixtures(timeout_s=timeout_s):
            show_mixture(console, client.mixture(name, timeout_s=timeout_s))
        _show_processes(console, client, timeout_s)


def _show_processes(console: Console, client: MixClient, timeout_s: float) -> None:
    """Say how many processes the server has, if they are several."""
    caller = client.catalog.resources.here.caller
    with suppress(ServerFault):  # the answer of a server that is older than this call
        workers = decode_server(caller.call(methods.GET_SERVER, b"", deadline_in(timeout_s))).workers
        if workers:
            told = f"{len(workers)} processes serve this address, and each serves one of its own: {', '.join(workers)}"
            console.print(told, markup=False, soft_wrap=True)


def show_mixture(
    console: Console, mixture: MixtureDescription, more: Sequence[Cells] = (), warnings: Sequence[str] = ()
) -> None:
    """Show one mixture: its sources, its schedule if it has one, its fields, and how it is drawn.

    `more` are further columns: a header, and a cell for each source.
    """
    for table in _sources(console, mixture, more):
        console.print(table)
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
    for said in warnings:
        console.print(f"  warning: {said}", markup=False, soft_wrap=True)


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


def _in_passes(mixture: MixtureDescription) -> bool:
    return mixture.sampling == "epoch"


def _sources(console: Console, mixture: MixtureDescription, more: Sequence[Cells]) -> list[Table]:
    """A table of the sources, or two if the terminal has no room for all columns in one."""
    columns = _columns(mixture)
    columns[1:1] = more[:1]  # their sizes, beside the numbers of records
    columns += more[1:]
    names = [escape(source.name) for source in mixture.sources[:MOST_ROWS]]
    widths = [3 + max(len(line) for cell in cells for line in cell.splitlines() or [""]) for cells in columns]
    name_width = 4 + max(len("source"), min(_LEAST_NAME, max(map(len, names), default=0)))
    parts, room = [list[Cells]()], console.width - name_width
    for cells, width in zip(columns, widths, strict=True):
        if width > room and parts[-1]:
            parts.append([])
            room = console.width - name_width
        parts[-1].append(cells)
        room -= width
    tables = [_table(names, part) for part in parts]
    tables[0].title = f"mixture {escape(mixture.name)}"
    return tables


def _columns(mixture: MixtureDescription) -> list[Cells]:
    sources = mixture.sources[:MOST_ROWS]
    columns: list[Cells] = [
        ["records", *(f"{source.length:,}" for source in sources)],
        ["share", *(f"{source.weight:.4%}" for source in sources)],
    ]
    if _in_passes(mixture):
        ends = ["never over" if source.pass_end is None else f"{source.pass_end:,}" for source in sources]
        columns.append(["first pass,\nin positions", *ends])
    return columns


def _table(names: Sequence[str], columns: Sequence[Cells]) -> Table:
    table = Table(title_justify="left", title_style="bold")
    table.add_column("source", overflow="fold")
    for header, *_ in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for name, *cells in zip(names, *(cells[1:] for cells in columns), strict=True):
        table.add_row(name, *cells)
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
