"""`mixserve ray`: starts, scales, shows and ends fleets."""

import json
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from mixserve.autoscaling import Thresholds
from mixserve.cli.autoscale_run import follow
from mixserve.cli.console import open_console
from mixserve.ray import attach
from mixserve.ray import up as start_fleet
from mixserve.ray.fleet import Fleet
from mixserve.ray.messages import AutoscalingSpec, FleetStatus, ReplicaStatus
from mixserve.ray.runtime import attached
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import shorten, show_names

_SHORT = 12  # of a fingerprint
_SHOWN = 200


def start(config: Path, *, resources: str | None, autoscale: str | None, **options: Any) -> None:
    """Start a fleet, and say where it is. Raises what `mixserve.ray.up` raises."""
    between = None if autoscale is None else _between(autoscale)
    needed = _resources(resources)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left then, either
    fleet = start_fleet(config, resources=needed, autoscaling=between, tell=_progress(), **options)
    found = fleet.addresses()
    typer.echo(f"the fleet {fleet.name} serves at {show_names(found)}")
    typer.echo(f'clients: MixClient.connect("{fleet.address}"), or without Ray "ray://{found[0]}"')


def scale(name: str, replicas: int, *, address: str | None, grace_s: float, timeout_s: float) -> None:
    """Scale a fleet, and wait until it is so. Raises what `Fleet.scale` raises."""
    fleet = attach(name, address=address)
    fleet.scale(replicas, grace_s=grace_s)
    fleet.wait(timeout_s, _progress())
    typer.echo(f"the fleet {name} has {replicas} replicas: {show_names(fleet.addresses())}")


def autoscale(
    name: str,
    between: str | None,
    *,
    address: str | None,
    dry_run: bool,
    off: bool,
    thresholds: Thresholds,
    every_s: float,
) -> None:
    """Begin to scale a fleet by a policy, or end that; in a dry run say what the policy would do, until a signal.

    Raises InvalidRequest, and Unavailable if the fleet is not up.
    """
    if off == (between is not None):
        raise InvalidRequest("give either MIN:MAX, the fewest and the most replicas, or --off")
    least, most = (1, 1) if between is None else _between(between)
    wanted = AutoscalingSpec(least, most, thresholds, every_s)
    fleet = attach(name, address=address)
    if off:
        fleet.stop_autoscaling()
        typer.echo(f"the fleet {name} keeps the number of its replicas")
    elif dry_run:
        follow(wanted.policy(), fleet.observer(), None, every_s)
    else:
        fleet.autoscale(least, most, thresholds=thresholds, every_s=every_s)
        typer.echo(f"the fleet {name} has {least} to {most} replicas, as trainers need them")


def show(name: str, *, address: str | None, as_json: bool) -> None:
    """Write a table of a fleet's replicas. Raises Unavailable."""
    status = attach(name, address=address).status()
    if as_json:
        typer.echo(json.dumps(asdict(status)))
        return
    console = open_console()
    console.print(_table(status))
    wanted = ", ".join(f"{count} of {source or 'the mixtures'}" for source, count in status.wanted.items())
    console.print(f"wanted: {wanted}", markup=False)
    if status.autoscaling:
        console.print(f"autoscaling: {status.autoscaling}", markup=False, soft_wrap=True)
    for one in status.replicas:
        if one.error:
            console.print(f"{one.name}: {one.error}", markup=False, soft_wrap=True)


def end(name: str, *, address: str | None, grace_s: float) -> None:
    """End a fleet."""
    Fleet(name, attached(address)).down(grace_s=grace_s)
    typer.echo(f"the fleet {name} is down")


def _table(status: FleetStatus) -> Table:
    table = Table()
    for column in ("replica", "node", "address", "state", "restarts", "readers", "they wait", "fingerprint"):
        table.add_column(column, justify="right" if column in ("restarts", "readers", "they wait") else "left")
    for one in status.replicas:
        table.add_row(*_cells(one))
    return table


def _cells(one: ReplicaStatus) -> list[str]:
    node = f"{one.host} ({one.node[:8]})" if one.node else ""
    waits = "" if one.wait_share is None else f"{one.wait_share:.0%}"
    fingerprints = ", ".join(shorten(value, _SHORT) for value in one.fingerprints.values())
    return [one.name, node, one.address, one.state, str(one.restarts), str(one.readers), waits, fingerprints]


def _progress() -> Callable[[FleetStatus], None]:
    """Writes a line for each change to standard error: opening the sources may take minutes."""
    last = ""

    def tell(status: FleetStatus) -> None:
        nonlocal last
        said = ", ".join(f"{one.name} {one.state}" for one in status.replicas)
        if said and said != last:
            typer.echo(shorten(said, _SHOWN), err=True)
            last = said

    return tell


def _between(text: str) -> tuple[int, int]:
    """Raises InvalidRequest."""
    least, _, most = text.partition(":")
    if not (least.isdecimal() and most.isdecimal()):
        raise InvalidRequest(f"the fewest and the most replicas must be MIN:MAX, such as 2:16, got {text!r:.100}")
    return int(least), int(most)


def _resources(text: str | None) -> dict[str, float]:
    """Raises InvalidRequest."""
    try:
        found = {} if text is None else json.loads(text)
        return {str(name): float(amount) for name, amount in found.items()}
    except (ValueError, TypeError, AttributeError):
        raise InvalidRequest(f'--resources must be JSON such as {{"disk": 1}}, got {text!r:.100}') from None
