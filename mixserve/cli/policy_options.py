"""Options of the policy that scales replicas, which several commands have."""

from typing import Annotated

import typer

Every = Annotated[float, typer.Option(metavar="SECONDS", help="How often to look, in seconds.", min=0.1, max=600.0)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done, and why.")]
Up = Annotated[
    float, typer.Option(metavar="SHARE", help="More when trainers wait for more than this part of their time.")
]
Down = Annotated[float, typer.Option(metavar="SHARE", help="Fewer only while they wait for at most this part of it.")]
Busy = Annotated[
    float, typer.Option(metavar="REPLIES", help="How many replies at a time each of fewer may have to make.")
]
UpAfter = Annotated[float, typer.Option(help="Seconds that trainers must wait, before there are more.")]
DownAfter = Annotated[float, typer.Option(help="Seconds that they must not wait, before there are fewer.")]
Settle = Annotated[float, typer.Option(help="Seconds after a change in which figures do not count.")]
GoneAfter = Annotated[float, typer.Option(help="Seconds without any reader, before there are the fewest.")]
