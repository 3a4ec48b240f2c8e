"""The command `mixserve autoscale` and its options."""

from typing import Annotated

import typer

from mixserve.cli.connecting import Connection
from mixserve.cli.plain_errors import plain_errors


def autoscale(
    addresses: Annotated[
        list[str], typer.Argument(metavar="ADDR…", help="All replicas: host:port of each, or dns:///name:port.")
    ],
    connection: Connection,
    least: Annotated[int, typer.Option("--min", help="Fewest replicas.", min=1)] = 1,
    most: Annotated[int, typer.Option("--max", help="Most replicas.", min=1)] = 8,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="How often to look, in seconds.", min=0.1, max=600.0)
    ] = 5.0,
    command: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="COMMAND", help="What scales: run without a shell, with the number for {replicas}."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done, and why.")] = False,
    up: Annotated[
        float, typer.Option(metavar="SHARE", help="More when trainers wait for more than this part of their time.")
    ] = 0.05,
    down: Annotated[
        float, typer.Option(metavar="SHARE", help="Fewer only while they wait for at most this part of it.")
    ] = 0.02,
    busy: Annotated[
        float, typer.Option(metavar="REPLIES", help="How many replies at a time each of fewer may have to make.")
    ] = 0.7,
    up_after_s: Annotated[float, typer.Option(help="Seconds that trainers must wait, before there are more.")] = 15.0,
    down_after_s: Annotated[
        float, typer.Option(help="Seconds that they must not wait, before there are fewer.")
    ] = 300.0,
    settle_s: Annotated[float, typer.Option(help="Seconds after a change in which figures do not count.")] = 60.0,
    gone_after_s: Annotated[float, typer.Option(help="Seconds without any reader, before there are --min.")] = 600.0,
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
