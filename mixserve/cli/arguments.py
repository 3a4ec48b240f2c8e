"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="MIXTURE.YAML", help="The configuration file.")]
Address = Annotated[str, typer.Argument(metavar="ADDR", help="host:port or unix:///path of a running server.")]
MixtureName = Annotated[str | None, typer.Option(help="The mixture; required if there are several.")]
Placement = Annotated[str | None, typer.Option(help="Where rows are gathered: auto, host or device.")]
SharedMemory = Annotated[
    str | None, typer.Option(help="Folder for the sockets of shared memory on this host; off for none.")
]
Bulk = Annotated[bool | None, typer.Option("--bulk/--no-bulk", help="Whether batches may come over bulk channels.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for the server.")]
CompilationCache = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|off",
        help="Cache folder of compiled programs, for quick starts; by default the user's.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")]
