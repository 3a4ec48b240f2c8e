"""`mixserve ray …` and their options."""

from pathlib import Path
from typing import Annotated

import typer

from mixserve.cli.arguments import AsJson, ConfigFile, Placement
from mixserve.cli.plain_errors import plain_errors
from mixserve.cli.policy_options import Busy, Down, DownAfter, DryRun, Every, GoneAfter, Settle, Up, UpAfter

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
    autoscale: Annotated[
        str | None, typer.Option(metavar="MIN:MAX", help="Let the number follow what trainers feel, between these.")
    ] = None,
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
            autoscale=autoscale,
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


@ray.command("autoscale")
def autoscale(
    name: FleetName = _NAME,
    between: Annotated[str | None, typer.Argument(metavar="MIN:MAX", help="The fewest and the most replicas.")] = None,
    address: RayAddress = None,
    dry_run: DryRun = False,
    off: Annotated[bool, typer.Option("--off", help="Keep the number that there is.")] = False,
    every: Every = 5.0,
    up: Up = 0.05,
    down: Down = 0.02,
    busy: Busy = 0.7,
    up_after_s: UpAfter = 15.0,
    down_after_s: DownAfter = 300.0,
    settle_s: Settle = 60.0,
    gone_after_s: GoneAfter = 600.0,
) -> None:
    """Let the number of replicas follow what trainers feel, as `mixserve autoscale` does for other servers."""
    with plain_errors():
        from mixserve.autoscaling import Thresholds
        from mixserve.cli.ray_fleet import autoscale

        thresholds = Thresholds(
            up=up,
            down=down,
            busy=busy,
            up_after_s=up_after_s,
            down_after_s=down_after_s,
            settle_s=settle_s,
            gone_after_s=gone_after_s,
        )
        autoscale(name, between, address=address, dry_run=dry_run, off=off, thresholds=thresholds, every_s=every)


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
