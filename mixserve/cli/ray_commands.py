"""`mixserve ray …` and their options."""

from pathlib import Path
from typing import Annotated

import typer

from mixserve.cli.arguments import AsJson, ConfigFile, Placement
from mixserve.cli.plain_errors import plain_errors

ray = typer.Typer(
    help="A fleet of replicas in a cluster of Ray, which places and restarts them.",
    no_args_is_help=True,
    add_completion=False,
)
_NAME = "mixserve"
FleetName = Annotated[str, typer.Argument(metavar="NAME", help="The fleet's name.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="Ray's; by default RAY_ADDRESS, else this machine's cluster."),
]
Grace = Annotated[float, typer.Option(help="Seconds that running calls have to finish.", min=0.0, max=86400.0)]
Wait = Annotated[float, typer.Option(help="Seconds to wait until all replicas serve.", min=0.0)]


@ray.command("up")
def up(
    config: ConfigFile,
    replicas: Annotated[int, typer.Option(help="How many replicas.", min=1, max=1000)] = 1,
    name: Annotated[str, typer.Option(help="The fleet's name, for ray://NAME.")] = _NAME,
    address: RayAddress = None,
    num_cpus: Annotated[float, typer.Option(help="Cores of a replica, as Ray counts them.", min=0.0)] = 1.0,
    num_gpus: Annotated[float, typer.Option(help="GPUs of a replica, as Ray counts them.", min=0.0)] = 0.0,
    resources: Annotated[
        str | None, typer.Option(metavar="JSON", help='Other resources of a replica, as for ray start: {"disk": 1}.')
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where relative paths begin on each node; by default the file's folder."),
    ] = None,
    placement: Placement = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines connect without TLS or credentials.")
    ] = False,
    timeout_s: Wait = 600.0,
) -> None:
    """Start a fleet; ends when all of its replicas serve. After an error nothing is left running."""
    with plain_errors():
        from mixserve.cli.ray_fleet import start

        start(
            config,
            replicas=replicas,
            name=name,
            address=address,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=resources,
            folder=folder,
            placement=placement,
            insecure=insecure,
            timeout_s=timeout_s,
        )


@ray.command("scale")
def scale(
    name: FleetName,
    replicas: Annotated[int, typer.Argument(metavar="N", help="How many replicas.", min=0, max=1000)],
    address: RayAddress = None,
    grace_s: Grace = 30.0,
    timeout_s: Wait = 600.0,
) -> None:
    """Start or drain replicas, so that there are N."""
    with plain_errors():
        from mixserve.cli.ray_fleet import scale

        scale(name, replicas, address=address, grace_s=grace_s, timeout_s=timeout_s)


@ray.command("status")
def status(name: FleetName = _NAME, address: RayAddress = None, as_json: AsJson = False) -> None:
    """Show the replicas of a fleet: where they are, and how they are."""
    with plain_errors():
        from mixserve.cli.ray_fleet import show

        show(name, address=address, as_json=as_json)


@ray.command("down")
def down(name: FleetName = _NAME, address: RayAddress = None, grace_s: Grace = 30.0) -> None:
    """Drain and end all replicas of a fleet, and the fleet."""
    with plain_errors():
        from mixserve.cli.ray_fleet import end

        end(name, address=address, grace_s=grace_s)
