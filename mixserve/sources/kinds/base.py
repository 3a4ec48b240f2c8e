"""The base classes of sections and sources in a configuration file: strict keys, names and weights."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Paths = str | Annotated[list[str], Field(min_length=1)]
Function = Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]  # module:function
Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$")]


def _check_weight(weight: float) -> float:
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"weights must be positive or zero, and finite, got {weight}")
    return weight


Weight = Annotated[float, AfterValidator(_check_weight)]


class Section(BaseModel):
    """A section of the file. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(Section):
    """A source in the file. A subclass adds `kind`, a Literal with one name, and the keys of that kind.

    With `on_error: skip`, records that cannot be decoded are left out, if `mixserve check --full` has listed them.
    """

    weight: Weight | None = None
    content_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    on_error: Literal["raise", "skip"] = "raise"

    def open(self, folder: Path) -> Any:
        """Open the source; paths are relative to `folder`. Errors name the key, and the file if there is one.

        A subclass imports JAX here and not with its module: commands that only query a server do not need it, and
        errors in a configuration are reported without the second that JAX takes to load.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open")
