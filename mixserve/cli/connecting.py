"""How a command connects to a server: options that all of them have, else environment variables."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mixserve_client import MixClient

# No option takes a token itself: every user of the machine could read it in the list of processes.
_OPTIONS: dict[str, Any] = {
    "token_file": Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of the token to send; by default MIXSERVE_TOKEN.")
    ],
    "tls": Annotated[bool, typer.Option("--tls", help="Use TLS; --ca and MIXSERVE_CA mean it, too.")],
    "ca": Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Authorities of the server's certificate; by default MIXSERVE_CA."),
    ],
    "certificate": Annotated[Path | None, typer.Option(metavar="FILE", help="This client's certificate.")],
    # `--key` is the seed of a reader's key.
    "key_file": Annotated[Path | None, typer.Option(metavar="FILE", help="The key of this client's certificate.")],
}


@dataclass(frozen=True, slots=True)
class Connection:
    """What a command was told about TLS and tokens."""

    token_file: Path | None = None
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key_file: Path | None = None

    def credentials(self) -> dict[str, Any]:
        """The arguments `tls`, `token` and `token_file` of `MixClient.connect`. Raises InvalidRequest."""
        from mixserve_client.credentials import CA_VARIABLE, TOKEN_VARIABLE, TlsOptions, from_environment

        given = {"token_file": TOKEN_VARIABLE, "ca": CA_VARIABLE}
        beaten = {variable for option, variable in given.items() if getattr(self, option) is not None}
        found = from_environment({name: value for name, value in os.environ.items() if name not in beaten})
        if self.token_file is not None:
            found["token_file"] = self.token_file
        if self.tls or self.ca or self.certificate or self.key_file:
            found["tls"] = TlsOptions(self.ca or found.get("tls"), self.certificate, self.key_file)
        return found

    def connect(self, address: str, **options: Any) -> "MixClient":
        """`MixClient.connect` with these credentials. Raises InvalidRequest."""
        from mixserve_client import MixClient

        return MixClient.connect(address, **options, **self.credentials())


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the parameter `connection` of a command by the options that a `Connection` is made of."""

    def run(**given: Any) -> None:
        connection = Connection(**{one.name: given.pop(one.name) for one in fields(Connection)})
        command(**given, connection=connection)

    signature = inspect.signature(command)
    options = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=_OPTIONS[one.name])
        for one in fields(Connection)
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name != "connection"
    ]
    # Typer reads both: the defaults here, and the types there.
    run.__signature__ = signature.replace(parameters=own + options)  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in own + options}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run
