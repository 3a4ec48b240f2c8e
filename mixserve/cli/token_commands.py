"""`mixserve token …` and their options."""

from pathlib import Path
from typing import Annotated

import typer

from mixserve.cli.arguments import AsJson
from mixserve.cli.plain_errors import plain_errors

token = typer.Typer(help="The token file of a server: who may call it.", no_args_is_help=True, add_completion=False)
TokenFile = Annotated[Path, typer.Option(metavar="FILE", help="The token file, as in server.tokens.")]
_FILE = Path("tokens.yaml")


@token.command("new")
def new(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="reader, trainer (sessions, too) or admin (everything).")],
    file: TokenFile = _FILE,
    name: Annotated[str | None, typer.Option(help="The token's name in lists and logs; by default ROLE-N.")] = None,
    mixture: Annotated[
        list[str] | None, typer.Option(help="A mixture that it is for; repeat it. By default it is for all.")
    ] = None,
) -> None:
    """Add a token to a file, made if it is not there, and print the token, which the file does not have."""
    with plain_errors():
        from mixserve.cli.tokens import add

        add(file, role=role, name=name, mixtures=mixture or None)


@token.command("list")
def show(file: TokenFile = _FILE, as_json: AsJson = False) -> None:
    """Show the tokens of a file: names, roles and mixtures."""
    with plain_errors():
        from mixserve.cli.tokens import show

        show(file, as_json=as_json)


@token.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The token's name.")], file: TokenFile = _FILE
) -> None:
    """Remove a token from a file. Servers refuse it within two seconds, also in streams that run."""
    with plain_errors():
        from mixserve.cli.tokens import revoke

        revoke(file, name)
