"""Descriptions of mixtures -> tables on the terminal."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient, MixtureDescription


def show_file(config_file: Path, *, placement: str | None) -> None:
    """Build the mixtures of a configuration file and show them. Raises ConfigError."""
    from mixserve.local import local_client

    nodes = build_nodes(load_config(config_file), config_file, placement=placement)
    with local_client(nodes) as client:
        _show_all(client, None)


def show_server(address: str, timeout_s: float) -> None:
    """Show the mixtures of a running server. Raises MixserveError."""
    with MixClient.connect(address, patience_s=timeout_s) as client:
        _show_all(client, timeout_s)


def _show_all(client: MixClient, timeout_s: float | None) -> None:
    console = Console(highlight=False)
    for name in client.mixtures(timeout_s=timeout_s):
        _show(console, client.mixture(name, timeout_s=timeout_s))


def _show(console: Console, mixture: MixtureDescription) -> None:
    table = Table(title=f"mixture {escape(mixture.name)}", title_justify="left", title_style="bold")
    table.add_column("source")
    table.add_column("records", justify="right")
    table.add_column("share", justify="right")
    for source in mixture.sources:
        table.add_row(escape(source.name), f"{source.length:,}", f"{source.weight:.4%}")
    console.print(table)
    for field in mixture.fields:
        console.print(f"  field {field.name}: {field.dtype.name}{list(field.shape)}", markup=False)
    console.print(f"  {mixture.row_bytes:,} bytes a row, up to {mixture.limits.size:,} rows a request", markup=False)
    console.print(f"  sampling {mixture.sampling}, placement {mixture.placement}")
    console.print(f"  fingerprint {mixture.fingerprint}", soft_wrap=True)
