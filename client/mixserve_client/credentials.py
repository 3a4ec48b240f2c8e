"""How a client proves who it is, and how it knows its server: TLS and a bearer token."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, cast

from mixserve_client.errors import InvalidRequest
from mixserve_client.redaction import has_token

AnyPath = str | PathLike[str]

_LONGEST_TOKEN = 1024
TOKEN_VARIABLE, CA_VARIABLE = "MIXSERVE_TOKEN", "MIXSERVE_CA"


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """The files of TLS, in PEM: `ca` has the authorities that may have signed the server's certificate (None: those
    that gRPC brings), and `certificate` with `key` are the client's own, for servers that ask for one.

    They are read again when they change. Paths are made absolute here, so that a pickle means the same files. Raises
    InvalidRequest.
    """

    ca: AnyPath | None = None
    certificate: AnyPath | None = None
    key: AnyPath | None = None

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key"):
            given: Any = getattr(self, name)
            if given is None:
                continue
            object.__setattr__(self, name, _absolute(given, f"tls: {name} must be the path of a file in PEM"))
        if (self.certificate is None) != (self.key is None):
            lacking = "key" if self.key is None else "certificate"
            raise InvalidRequest(f"tls: a certificate and its key belong together; {lacking} is missing")

    @classmethod
    def of(cls, given: Any) -> "TlsOptions | None":
        """The options that True, the path of an authority's file, or TlsOptions stand for; None for False and None.

        Raises InvalidRequest.
        """
        if given is False or given is None:
            return None
        if given is True:
            return cls()
        if isinstance(given, cls):
            return given
        if isinstance(given, str | os.PathLike):
            return cls(ca=cast(AnyPath, given))
        raise InvalidRequest(f"tls must be True, the path of a file of authorities, or TlsOptions, got {given!r:.100}")


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """A bearer token, or the absolute path of the file that has one, which is read again when it changes.

    The token is in no repr. Raises InvalidRequest.
    """

    token: str | None = field(default=None, repr=False)
    token_file: AnyPath | None = None

    def __post_init__(self) -> None:
        if self.token is not None:
            if self.token_file is not None:
                raise InvalidRequest("give either token or token_file, not both")
            object.__setattr__(self, "token", check_token(self.token, "token"))
        given: Any = self.token_file
        if given is not None:
            path = _absolute(given, "token_file must be the path of a file that has a token")
            object.__setattr__(self, "token_file", path)


def _absolute(path: Any, what: str) -> str:
    if not isinstance(path, str | os.PathLike) or not os.fspath(cast(AnyPath, path)):
        raise InvalidRequest(f"{what}, got {path!r:.100}")
    check_no_token(os.fspath(cast(AnyPath, path)), what)
    # Links stay: where secrets are mounted, a link leads to the newest ones.
    return str(Path(cast(AnyPath, path)).expanduser().absolute())


def check_no_token(given: str, what: str) -> None:
    """Raises InvalidRequest, which does not show it, if a token was given where `what` says what is due.

    Before files and names are looked for: errors of the system, and the network, would show it.
    """
    if has_token(given):
        raise InvalidRequest(
            f"{what}, and a token was given: it belongs into {TOKEN_VARIABLE}, token=… or a file that is named by "
            f"token_file (--token-file)"
        )


def check_token(token: Any, where: str) -> str:
    """`token` without white space around it, if it can be sent. Raises InvalidRequest, which does not show it."""
    if not isinstance(token, str):
        raise InvalidRequest(f"{where} must be a text, got {type(token).__name__}")
    stripped = token.strip()
    if not stripped or len(stripped) > _LONGEST_TOKEN or not (stripped.isascii() and stripped.isprintable()):
        raise InvalidRequest(
            f"{where} must have 1 to {_LONGEST_TOKEN} printable ASCII characters in one line, as mixserve token new "
            f"prints it; got {len(stripped)} characters"
        )
    if " " in stripped:
        raise InvalidRequest(f"{where} must be one word, as mixserve token new prints it, and has spaces")
    return stripped


def from_environment(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The arguments `tls` and `token` of `connect` that MIXSERVE_CA and MIXSERVE_TOKEN stand for, if they are set."""
    variables = os.environ if environ is None else environ
    found: dict[str, Any] = {}
    if ca := variables.get(CA_VARIABLE):
        found["tls"] = ca
    if token := variables.get(TOKEN_VARIABLE):
        found["token"] = check_token(token, TOKEN_VARIABLE)
    return found
