"""`kind: factory`: a function of the user that returns a source."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mixserve.sources.kinds.base import Function, SourceConfig
from mixserve.sources.kinds.functions import import_function, running
from mixserve_client.schema.text import show


class FactoryConfig(SourceConfig):
    """A function of the user that returns a Source; the server calls it with `arguments`."""

    kind: Literal["factory"]
    function: Function
    arguments: dict[str, Any] = Field(default={})

    def open(self, folder: Path) -> Any:
        from mixserve.sources.reference_source import FollowsReference
        from mixserve.sources.source import Source

        function = import_function(self.function, folder, "function")
        with running(folder, f"function: {self.function}"):
            source = function(**self.arguments)
            is_source = isinstance(source, Source | FollowsReference)  # looks at attributes, so user code may run
        if not is_source:
            raise TypeError(f"function: {self.function} must return a Source, got {show(source)}")
        return source
