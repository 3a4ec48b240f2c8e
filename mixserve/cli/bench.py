"""How fast batches come from a running server to this process: a table by batch size."""

import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mixserve.cli.connecting import Connection
from mixserve.cli.console import open_console
from mixserve_client import MixClient, MixtureDescription

_WARM_UP_S = 0.3  # not measured: connecting, shared memory, and the first plans
_MOST_LATENCIES = 1_000_000


@dataclass(frozen=True)
class Measured:
    """Results for one batch size: wall time, CPU time of this process, and the latency of each batch."""

    batch_size: int
    seconds: float
    cpu_s: float
    latencies_s: list[float]


def run(
    address: str,
    connection: Connection,
    *,
    sizes: list[int],
    seconds: float,
    key: int,
    mixture: str | None,
    shared_memory: bool | str,
    bulk: bool,
    checksum: bool,
) -> None:
    """Read batches of each size for `seconds` seconds, and show a table. Raises MixserveError."""
    console = open_console()
    options = {"shared_memory": shared_memory, "bulk": bulk, "checksum": checksum}
    with connection.connect(address, patience_s=10, **options) as client:
        description = client.mixture(mixture)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("measuring", total=len(sizes) * seconds)
            measured: list[Measured] = []
            for number, size in enumerate(sizes):
                progress.update(task, description=f"batches of {size:,}", completed=number * seconds)
                # Another key for each size: the same key could be answered from the server's cached plans.
                measured.append(_measure(client, description, size, (key + number) % 2**32, seconds))
        console.print(_table(measured, description))
        way = f"{client.transport}, with checksums" if checksum else client.transport
        console.print(f"  over {way}; mixture {description.name}, {description.row_bytes:,} bytes a row")


def _measure(client: MixClient, description: MixtureDescription, size: int, key: int, seconds: float) -> Measured:
    with client.batches(size, key, mixture=description.name) as batches:
        warm = time.perf_counter() + _WARM_UP_S
        next(batches)
        while time.perf_counter() < warm:
            next(batches)
        latencies: list[float] = []
        cpu, began = time.process_time(), time.perf_counter()
        last = began
        while last - began < seconds and len(latencies) < _MOST_LATENCIES:
            next(batches)
            now = time.perf_counter()
            latencies.append(now - last)
            last = now
        return Measured(size, last - began, time.process_time() - cpu, latencies)


def _table(measured: list[Measured], description: MixtureDescription) -> Table:
    table = Table()
    for column in ("batch size", "batches/s", "GB/s", "p50 ms", "p99 ms", "CPU s/GB here"):
        table.add_column(column, justify="right")
    for one in measured:
        count = len(one.latencies_s)
        gigabytes = count * one.batch_size * description.row_bytes / 1e9
        p50, p99 = np.quantile(one.latencies_s, (0.5, 0.99)) * 1e3
        table.add_row(
            f"{one.batch_size:,}",
            f"{count / one.seconds:,.0f}",
            f"{gigabytes / one.seconds:.3f}",
            f"{p50:.3f}",
            f"{p99:.3f}",
            f"{one.cpu_s / gigabytes:.2f}" if gigabytes else "",
        )
    return table
