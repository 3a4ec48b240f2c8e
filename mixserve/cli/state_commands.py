"""`mixserve state …` and their options."""

from typing import Annotated

import typer

from mixserve.cli.arguments import Address, AsJson, MixtureName, Timeout
from mixserve.cli.connecting import Connection, connecting
from mixserve.cli.plain_errors import plain_errors

state = typer.Typer(
    help="The sessions that a running server knows, and their checkpoints.", no_args_is_help=True, add_completion=False
)
SessionName = Annotated[str, typer.Argument(metavar="SESSION", help="The session's name.")]
CheckpointName = Annotated[str, typer.Argument(metavar="NAME", help="The checkpoint's name.")]


@state.command("list")
@connecting
def state_list(
    address: Address,
    connection: Connection,
    mixture: Annotated[str | None, typer.Option(help="Only the sessions of this mixture.")] = None,
    as_json: AsJson = False,
    timeout_s: Timeout = 10.0,
) -> None:
    """Show the sessions: holders, positions and checkpoints."""
    with plain_errors():
        from mixserve.cli.state import show_sessions

        show_sessions(address, connection, mixture=mixture, as_json=as_json, timeout_s=timeout_s)


@state.command("show")
@connecting
def state_show(
    address: Address,
    connection: Connection,
    session: SessionName,
    mixture: MixtureName = None,
    as_json: AsJson = False,
    timeout_s: Timeout = 10.0,
) -> None:
    """Show one session: its holder, position, statistics and checkpoints."""
    with plain_errors():
        from mixserve.cli.state import show_session

        show_session(address, connection, session, mixture=mixture, as_json=as_json, timeout_s=timeout_s)


@state.command("save")
@connecting
def state_save(
    address: Address,
    connection: Connection,
    session: SessionName,
    name: CheckpointName,
    keep_last: Annotated[
        int | None, typer.Option(help="Delete all but this many of the session's newest checkpoints.", min=1)
    ] = None,
    mixture: MixtureName = None,
    timeout_s: Timeout = 10.0,
) -> None:
    """Save a session's state as a checkpoint; its holder may go on meanwhile."""
    with plain_errors():
        from mixserve.cli.state import save

        save(address, connection, session, name, keep_last=keep_last, mixture=mixture, timeout_s=timeout_s)


@state.command("restore")
@connecting
def state_restore(
    address: Address,
    connection: Connection,
    session: SessionName,
    name: CheckpointName,
    source: Annotated[
        str | None, typer.Option("--from", metavar="OTHER_SESSION", help="The session that the checkpoint belongs to.")
    ] = None,
    take_over: Annotated[bool, typer.Option("--take-over", help="Take the session from its holder.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start the session over first; needed if its journal is damaged.")
    ] = False,
    ignore_fingerprint: Annotated[
        bool, typer.Option("--ignore-fingerprint", help="Accept another mixture's checkpoint: resume at its index.")
    ] = False,
    mixture: MixtureName = None,
    timeout_s: Timeout = 10.0,
) -> None:
    """Set a session, known or new, to a checkpoint. No client may hold the session meanwhile."""
    with plain_errors():
        from mixserve.cli.state import restore

        restore(
            address,
            connection,
            session,
            name,
            source=source,
            take_over=take_over,
            fresh=fresh,
            strict=not ignore_fingerprint,
            mixture=mixture,
            timeout_s=timeout_s,
        )


@state.command("delete")
@connecting
def state_delete(
    address: Address,
    connection: Connection,
    session: SessionName,
    name: CheckpointName,
    mixture: MixtureName = None,
    timeout_s: Timeout = 10.0,
) -> None:
    """Delete a checkpoint, without asking for confirmation."""
    with plain_errors():
        from mixserve.cli.state import delete

        delete(address, connection, session, name, mixture=mixture, timeout_s=timeout_s)
