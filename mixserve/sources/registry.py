"""The kinds of sources that a configuration file may have: the one table of them."""

import operator
from functools import reduce
from typing import TYPE_CHECKING, Annotated, get_args

from pydantic import Field

from mixserve.sources.kinds.arrays import ArraysConfig
from mixserve.sources.kinds.base import SourceConfig
from mixserve.sources.kinds.factory import FactoryConfig
from mixserve.sources.kinds.tokens import TokensConfig

_KINDS: tuple[type[SourceConfig], ...] = (
    TokensConfig,
    ArraysConfig,
    FactoryConfig,
)

# By the name that stands under `kind` in the file.
KINDS: dict[str, type[SourceConfig]] = {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in _KINDS}

if TYPE_CHECKING:
    AnySourceConfig = SourceConfig
else:
    AnySourceConfig = Annotated[reduce(operator.or_, _KINDS), Field(discriminator="kind")]
