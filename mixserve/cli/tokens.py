"""`mixserve token`: adds tokens to a file, lists and revokes them."""

import json
import stat
import sys
from itertools import count
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mixserve.access.entries import BadTokens, TokenEntry, check_entry, digest_of, new_token
from mixserve.access.tokens import read_tokens
from mixserve.cli.console import open_console
from mixserve.cli.token_file import changing
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import show_names


def add(file: Path, *, role: str, name: str | None, mixtures: list[str] | None) -> None:
    """Add a token, and print it. Raises InvalidRequest and OSError."""
    made = new_token()
    with _plain(), changing(file) as tokens:
        entry = _entry(tokens.entries, role, name, mixtures, digest_of(made).hex())
        tokens.append(entry)
    _warn_of_readers(file)
    of = "all mixtures" if mixtures is None else f"the mixtures {show_names(mixtures)}"
    print(
        f"added the token {entry.name!r} to {file}: role {role}, {of}. It is shown this once; keep it where its user "
        "reads it (token_file, --token-file, MIXSERVE_TOKEN)",
        file=sys.stderr,
    )
    print(made, flush=True)


def show(file: Path, *, as_json: bool) -> None:
    """Show the tokens of the file. Raises InvalidRequest and OSError."""
    with _plain():
        entries = read_tokens(file)
    _warn_of_readers(file)
    if as_json:
        print(json.dumps([_described(entry) for entry in entries], indent=1))
        return
    console = open_console()
    if not entries:
        console.print(f"{file} has no tokens", markup=False, soft_wrap=True)
        return
    table = Table(title=f"tokens of {escape(str(file))}", title_justify="left", title_style="bold")
    for column in ("name", "role", "mixtures"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        mixtures = "all" if entry.mixtures is None else ", ".join(entry.mixtures)
        table.add_row(entry.name, entry.role, escape(mixtures))
    console.print(table)


def revoke(file: Path, name: str) -> None:
    """Remove the token of that name. Raises InvalidRequest and OSError."""
    with _plain(), changing(file, must_exist=True) as tokens:
        names = [entry.name for entry in tokens.entries]
        if name not in names:
            raise BadTokens(f"{file} has no token of that name; it has {show_names(names) or 'none'}")
        tokens.remove(names.index(name))
    _warn_of_readers(file)
    print(f"revoked the token {name!r} of {file}: servers refuse it within two seconds", file=sys.stderr)


class _plain:  # noqa: N801  # it is used like a function
    """Turns BadTokens into InvalidRequest, which the command shows as one message."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadTokens):
            raise InvalidRequest(str(error)) from None


def _entry(
    known: tuple[TokenEntry, ...], role: str, name: str | None, mixtures: list[str] | None, sha256: str
) -> TokenEntry:
    """Raises BadTokens."""
    names = {entry.name for entry in known}
    given: dict[str, Any] = {"role": role, "sha256": sha256} | ({} if mixtures is None else {"mixtures": mixtures})
    entry = check_entry(given | {"name": "a" if name is None else name})
    if name is None:
        name = next(free for number in count(1) if (free := f"{role}-{number}") not in names)
        return check_entry(given | {"name": name})
    if name in names:
        raise BadTokens(f"there is a token {name!r} already; revoke it first, or choose another name")
    return entry


def _described(entry: TokenEntry) -> dict[str, Any]:
    return {"name": entry.name, "role": entry.role, "mixtures": entry.mixtures}


def _warn_of_readers(file: Path) -> None:
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        print(f"mixserve: others may read or write {file}: chmod 600 {file}", file=sys.stderr)
