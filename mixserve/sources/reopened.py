"""A source of files <-> its pickle: what opens the files again, and the digest of what they held."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

from mixserve.sources.prepared import preparing_in
from mixserve_client.schema.text import shorten

# The positional arguments of a source's class, of which the first is its paths, and those with names.
Arguments = tuple[Sequence[Any], Mapping[str, Any]]


def reduce_to_paths(source: Any, arguments: Arguments, prepared: Path | None = None) -> tuple[Any, ...]:
    """What `__reduce__` of a source returns whose class opens the same files again with `arguments`."""
    return reopen, (type(source), *arguments, prepared, source.content_digest())


def reopen(
    source: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], prepared: Path | None, digest: bytes
) -> Any:
    """The source over these files. Raises ValueError, which names them, if they are others than those of the pickle,
    and what the class does."""
    with preparing_in(prepared):
        found = source(*args, **kwargs)
    if found.content_digest() != digest:
        raise ValueError(
            f"{_show(args[0])} holds other records than when the source was pickled; open the source again"
        )
    return found


def _show(paths: Any) -> str:
    if isinstance(paths, str | PathLike):
        return str(cast(Any, paths))
    given = cast(Any, paths)
    return shorten(", ".join(map(str, given.values() if isinstance(given, Mapping) else given)), 500)
