"""The command `mixserve autoscale` and its options."""

from typing import Annotated

import typer

from mixserve.cli.connecting import Connection
from mixserve.cli.plain_errors import plain_errors
from mixserve.cli.policy_options import Busy, Down, DownAfter, DryRun, Every, GoneAfter, Settle, Up, UpAfter


def autoscale(
    addresses: Annotated[
        list[str], typer.Argument(metavar="ADDR…", help="All replicas: host:port of each, or dns:///name:port.")
    ],
    connection: Connection,
    least: Annotated[int, typer.Option("--min", help="Fewest replicas.", min=1)] = 1,
    most: Annotated[int, typer.Option("--max", help="Most replicas.", min=1)] = 8,
    every: Every = 5.0,
    command: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="COMMAND", help="What scales: run without a shell, with the number for {replicas}."
        ),
    ] = None,
    dry_run: DryRun = False,
    up: Up = 0.05,
    down: Down = 0.02,
    busy: Busy = 0.7,
    up_after_s: UpAfter = 15.0,
    down_after_s: DownAfter = 300.0,
    settle_s: Settle = 60.0,
    gone_after_s: GoneAfter = 600.0,
) -> None:
    """Follow what trainers feel: more replicas when they wait for data, fewer when replicas are idle."""
    with plain_errors():
        from mixserve.autoscaling import Policy, Thresholds
        from mixserve.cli.autoscale_run import run

        thresholds = Thresholds(
            up=up,
            down=down,
            busy=busy,
            up_after_s=up_after_s,
            down_after_s=down_after_s,
            settle_s=settle_s,
            gone_after_s=gone_after_s,
        )
        policy = Policy(least, most, thresholds)
        run(addresses, connection, policy, every_s=every, command=command, dry_run=dry_run)
