"""The commands and their options. Each command imports its code when it runs, so that `health` does not load JAX."""

from pathlib import Path
from typing import Annotated

import typer

from mixserve.cli.arguments import (
    Address,
    AsJson,
    Bulk,
    CompilationCache,
    ConfigFile,
    MixtureName,
    Placement,
    SharedMemory,
    Timeout,
)
from mixserve.cli.autoscale_command import autoscale
from mixserve.cli.connecting import Connection, connecting
from mixserve.cli.plain_errors import plain_errors
from mixserve.cli.ray_commands import ray
from mixserve.cli.state_commands import state
from mixserve.cli.token_commands import token

app = typer.Typer(
    name="mixserve",
    help="Data mixing as a service: every batch is a pure function of (mixture, key, start, size).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(state, name="state")
app.add_typer(token, name="token")
app.add_typer(ray, name="ray")


def _show_version(wanted: bool) -> None:
    if wanted:
        from mixserve import __version__

        typer.echo(f"mixserve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    config: ConfigFile,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for a free one.", min=0, max=65535)] = None,
    placement: Placement = None,
    shared_memory: SharedMemory = None,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of sessions and checkpoints; by default none.")
    ] = None,
    session_ttl_s: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long a session's holder may be silent; by default 900."),
    ] = None,
    compilation_cache: CompilationCache = None,
    grace_s: Annotated[float, typer.Option(help="Seconds that running calls have to finish after SIGTERM.")] = 30.0,
    health_port: Annotated[
        int | None, typer.Option(help="Port that answers health alone, in plain text.", min=0, max=65535)
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port where Prometheus reads metrics, in plain text.", min=0, max=65535)
    ] = None,
    bulk: Bulk = None,
    bulk_port: Annotated[
        int | None, typer.Option(help="Port of bulk channels; by default a free one.", min=0, max=65535)
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines connect without TLS or credentials.")
    ] = False,
    processes: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Processes that serve the port; auto: half of the cores.")
    ] = None,
    zone: Annotated[
        str | None,
        typer.Option(envvar="MIXSERVE_ZONE", help="Where this server is, for clients that prefer their own zone."),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="text|json", help="Lines of the log; by default text.")
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(metavar="debug|info|warning|error", help="What the log has at least; by default info."),
    ] = None,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Host the mixtures of a configuration file until SIGTERM or SIGINT; then drain, and exit with 0."""
    with plain_errors():
        from mixserve.cli.serve import run

        run(
            config,
            host=host,
            port=port,
            placement=placement,
            shared_memory=_folder("--shared-memory", shared_memory),
            state_dir=state_dir,
            session_ttl_s=session_ttl_s,
            compilation_cache=_folder("--compilation-cache", compilation_cache),
            grace_s=grace_s,
            insecure=insecure,
            health_port=health_port,
            metrics_port=metrics_port,
            processes=processes,
            worker=worker,
            bulk=bulk,
            bulk_port=bulk_port,
            zone=zone,
            log_format=log_format,
            log_level=log_level,
        )


@app.command()
def check(
    config: ConfigFile,
    placement: Placement = None,
    mixture: Annotated[str | None, typer.Option(help="Only this mixture.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Read all records, in place of a sample.")] = False,
    simulate: Annotated[
        int | None,
        typer.Option(
            help="Plan this many positions, and show what each source gets; reads no data.", min=1, max=1 << 40
        ),
    ] = None,
    key: Annotated[int, typer.Option(help="Seed of the key of the simulation, in 0..2^32-1.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="The picture of the simulation; by default MIXTURE_simulated.png.")
    ] = None,
) -> None:
    """Open everything that a configuration file names, and show the mixtures; exit code 2 if something is wrong."""
    with plain_errors():
        from mixserve_client.errors import InvalidRequest

        if plot is not None and simulate is None:
            raise InvalidRequest(f"--plot needs --simulate N, the number of positions to plan; got --plot {plot}")
        if full and simulate is not None:
            raise InvalidRequest("--simulate reads no data, and --full reads all: run check twice")
        if simulate is None:
            from mixserve.cli.check import run

            run(config, placement=placement, mixture=mixture, full=full)
        else:
            from mixserve.cli.simulate import run

            run(config, size=simulate, key=key, mixture=mixture, picture=plot, placement=placement)


@app.command()
def init(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Files and folders of data; with --from, a list of data.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("mixture.yaml"),
    sequence_length: Annotated[int | None, typer.Option(help="Length of rows of ids.", min=1, max=1 << 30)] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    library: Annotated[
        str | None, typer.Option("--from", help="Whose list it is: megatron, maxtext, olmo or mosaicml.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With --from: where relative paths begin; by default here.")
    ] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="With --from: text of paths to replace, as gs://b=/mnt/b; repeat it."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="With --from olmo: the ids' dtype; by default a guess.")] = None,
) -> None:
    """Look at files and folders of data, or at another library's list of them, and write a configuration file."""
    with plain_errors():
        if library is None:
            from mixserve.cli.init import run

            only = {"--base": base, "--replace": replace, "--dtype": dtype}
            run(paths, out=out, sequence_length=sequence_length, force=force, only_with_from=only)
        else:
            from mixserve.cli.migrate.run import run

            run(
                library,
                paths,
                out=out,
                sequence_length=sequence_length,
                force=force,
                base=base,
                replace=replace or [],
                dtype=dtype,
            )


@app.command()
@connecting
def info(address: Address, connection: Connection, timeout_s: Timeout = 10.0) -> None:
    """Show the mixtures that a running server holds."""
    with plain_errors():
        from mixserve.cli.show import show_server

        show_server(address, connection, timeout_s)


@app.command()
@connecting
def top(
    addresses: Annotated[
        list[str], typer.Argument(metavar="ADDR…", help="Running servers: host:port or unix:///path.")
    ],
    connection: Connection,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="How often to ask, in seconds.", min=0.1, max=3600.0)
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Write the figures of one interval, and end.")] = False,
    as_json: AsJson = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="Without colours, as with NO_COLOR.")] = False,
) -> None:
    """Show live what servers do: rates, shares of sources, waits of trainers, errors and limits."""
    with plain_errors():
        from mixserve.cli.top.run import run

        run(addresses, connection, every_s=every, once=once, as_json=as_json, no_color=no_color)


app.command()(connecting(autoscale))


@app.command()
@connecting
def explain(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A configuration file, or a running server's ADDR.")],
    connection: Connection,
    start: Annotated[int | None, typer.Option(help="First position; by default the state's, or 0.")] = None,
    size: Annotated[int | None, typer.Option(help="Number of rows (32).")] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="A batch by its number: 0 is the one at position --start (0). Needs --batch-size."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a batch, over all shards.")] = None,
    key: Annotated[int | None, typer.Option(help="Seed of the run's key, 0..2^32-1; needed without --state.")] = None,
    mixture: MixtureName = None,
    show: Annotated[bool, typer.Option("--show", help="Read the records, and show them too.")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="With --show: every number of large arrays.")] = False,
    state: Annotated[
        Path | None, typer.Option(help="JSON of an iterator's get_state(): mixture, key, position, schedule, skips.")
    ] = None,
    every_row: Annotated[bool, typer.Option("--all", help="Show every row, even if there are many.")] = False,
    as_json: AsJson = False,
    timeout_s: Timeout = 10.0,
) -> None:
    """Show which records are at a range of positions, and where they lie if a file is given; reads data for --show."""
    with plain_errors():
        from mixserve.cli.explain import run

        run(
            target,
            connection,
            start=start,
            size=size,
            batch=batch,
            batch_size=batch_size,
            key=key,
            mixture=mixture,
            state_file=state,
            records=show or whole,
            whole=whole,
            every_row=every_row,
            as_json=as_json,
            timeout_s=timeout_s,
        )


@app.command()
@connecting
def fetch(
    address: Address,
    connection: Connection,
    start: Annotated[int, typer.Option(help="First position.")] = 0,
    size: Annotated[int, typer.Option(help="Number of rows.")] = 8,
    key: Annotated[int, typer.Option(help="Seed of the key, in 0..2^32-1.")] = 0,
    mixture: MixtureName = None,
    out: Annotated[Path | None, typer.Option(help="Write the batch to this .npz file instead of showing it.")] = None,
    timeout_s: Timeout = 10.0,
) -> None:
    """Fetch one batch from a running server, and show it or write it to a file."""
    with plain_errors():
        from mixserve.cli.fetch import run

        run(address, connection, start=start, size=size, key=key, mixture=mixture, out=out, timeout_s=timeout_s)


@app.command()
@connecting
def bench(
    address: Address,
    connection: Connection,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Rows of a batch; repeat it for several sizes.", min=1)
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds to measure each batch size.", min=0.1)] = 3.0,
    key: Annotated[int, typer.Option(help="Seed of the first key; each batch size uses the next.")] = 0,
    mixture: MixtureName = None,
    shared_memory: SharedMemory = None,
    bulk: Bulk = None,
    checksum: Annotated[bool, typer.Option("--checksum", help="With checksums.")] = False,
) -> None:
    """Measure how fast this process gets batches from a running server."""
    with plain_errors():
        from mixserve.cli.bench import run

        sizes, memory = batch_size or [8, 32, 256, 1024, 4096], _folder("--shared-memory", shared_memory)
        run(
            address,
            connection,
            sizes=sizes,
            seconds=seconds,
            key=key,
            mixture=mixture,
            shared_memory=True if memory is None else memory,
            bulk=bulk is not False,
            checksum=checksum,
        )


@app.command()
@connecting
def health(
    address: Address,
    connection: Connection,
    timeout_s: Timeout = 5.0,
    mixture: Annotated[
        str | None, typer.Option(help="Ask whether this mixture gets records from its sources, too.")
    ] = None,
) -> None:
    """Ask a server whether it is serving: exit code 0 if so, else 1."""
    from mixserve.cli.health import probe

    status = probe(address, timeout_s, connection, mixture)
    typer.echo(status)
    raise typer.Exit(0 if status == "SERVING" else 1)


@app.command()
def demo(
    steps: Annotated[int, typer.Option(help="Training steps.", min=20)] = 400,
    folder: Annotated[Path | None, typer.Option(help="Folder for data and logs; by default a temporary one.")] = None,
    report: Annotated[Path, typer.Option(help="The picture of the run.")] = Path("demo_report.png"),
) -> None:
    """Train a small language model while server and trainer are killed, and compare with an undisturbed run."""
    with plain_errors():
        from mixserve.demo.run import run

        run(steps=steps, folder=folder, report=report)


def _folder(name: str, option: str | None) -> bool | str | None:
    if option == "":
        from mixserve_client.errors import InvalidRequest

        raise InvalidRequest(f"{name} must be a folder or off, got ''")
    return False if option == "off" else option
