"""`kind: factory`: a function of the user that returns a source."""

import re
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from mixserve.sources.array_like import how_to_wrap
from mixserve.sources.kinds.base import Function, SourceConfig
from mixserve.sources.kinds.expanding import expand
from mixserve.sources.kinds.functions import import_function, running
from mixserve_client.schema.text import show

# The names of arguments that have paths: `path`, `files`, `data_dir` and the like.
_PATHS = re.compile(r"(?:\w+_)?(?:path|file|folder|dir|directory)s?")


class FactoryConfig(SourceConfig):
    """A function of the user that returns a Source; the server calls it with `arguments`.

    Arguments whose names say that they are paths get absolute ones; in the file they are relative to it.
    """

    kind: Literal["factory"]
    function: Function
    arguments: dict[str, Any] = Field(default={})

    def open(self, folder: Path) -> Any:
        from mixserve.sources.reference_source import FollowsReference
        from mixserve.sources.source import Source

        function = import_function(self.function, folder, "function")
        arguments = {name: _with_paths(name, value, folder) for name, value in self.arguments.items()}
        with running(folder, f"function: {self.function}"):
            source = function(**arguments)
            is_source = isinstance(source, Source | FollowsReference)  # looks at attributes, so user code may run
        if not is_source:
            raise TypeError(
                f"function: {self.function} must return a Source, got {show(source, 100)}{how_to_wrap(source)}"
            )
        return source


def _with_paths(name: str, value: Any, folder: Path) -> Any:
    """`value`, with absolute paths in place of relative ones if `name` says that it has paths."""
    if not _PATHS.fullmatch(name):
        return value
    if isinstance(value, list):
        return [_with_paths(name, item, folder) for item in cast(list[Any], value)]
    if not isinstance(value, str) or not value or "://" in value:  # a URL
        return value
    try:
        return str(folder.absolute() / expand(value, folder))
    except ValueError as error:
        raise ValueError(f"arguments.{name}: {error}") from None
