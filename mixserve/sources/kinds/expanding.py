"""A path as people write it -> the path that they mean: `~`, `$VARS`, and paths that exist as they are written."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from glob import escape, has_magic
from pathlib import Path

from mixserve_client.credentials import check_no_token
from mixserve_client.schema.text import show

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^{}]*)\})")


def expand(path: str, folder: Path) -> str:
    """`path` with `~`, `$VAR` and `${VAR}` replaced, unless a file of the name that is written exists in `folder`.

    Raises ValueError if a variable is not set, and InvalidRequest if it is a token.
    """
    check_no_token(path, "a path must lead to a file or a folder")
    return path if _exists(folder / path) else _expanded(path, str)


def expand_pattern(path: str, folder: Path) -> tuple[str, bool]:
    """`path`, expanded, and whether it is a pattern.

    What exists as it is written is no pattern, also as the first folders of a path: `data [v2]/*.bin`. Neither are the
    values of variables. Raises ValueError if a variable is not set.
    """
    literal = expand(path, folder)
    if _exists(folder / literal) or not has_magic(path):
        return literal, False
    pattern = path if literal == path else _expanded(path, escape)
    known, parts = "/" if pattern.startswith("/") else "", [part for part in pattern.split("/") if part]
    for place, part in enumerate(parts):
        if not _exists(folder / known / part):
            break
        known = f"{known}{part}/"
        parts[place] = escape(part)
    begin = pattern[: len(pattern) - len(pattern.lstrip("/"))]
    return begin + "/".join(parts) + ("/" if pattern.endswith("/") else ""), True


def _expanded(path: str, quote: Callable[[str], str]) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2] or ""
        if name not in os.environ:
            raise ValueError(f"the path {show(path)} has the variable {show(name)}, which is not set")
        return quote(os.environ[name])

    home, slash, rest = path.partition("/")
    with suppress(RuntimeError):  # no user of that name: it is the name of a file, or of nothing
        if home.startswith("~"):
            return quote(str(Path(home).expanduser())) + slash + _VARIABLE.sub(value, rest)
    return _VARIABLE.sub(value, path)


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL in the path
        return False
