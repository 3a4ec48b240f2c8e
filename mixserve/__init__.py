"""mixserve: data mixing as a service; every batch is a pure function of (mixture, key, start, size)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixserve.local import local_client
    from mixserve.module import DataSourceModule, StructuralConfig
    from mixserve.node import MixDataSourcesConfig, MixDataSourcesNode
    from mixserve.serving import MixServer, serve
    from mixserve.sources import ArraySource, RandomAccessSource, Source, TokenSource

__all__ = [
    "ArraySource",
    "DataSourceModule",
    "MixDataSourcesConfig",
    "MixDataSourcesNode",
    "MixServer",
    "RandomAccessSource",
    "Source",
    "StructuralConfig",
    "TokenSource",
    "local_client",
    "serve",
]
__version__ = "0.1.0"

# Imported at first use, so that a command that only calls a server (a health probe every few seconds) never loads JAX.
_HOMES = {
    "ArraySource": "mixserve.sources",
    "DataSourceModule": "mixserve.module",
    "MixDataSourcesConfig": "mixserve.node",
    "MixDataSourcesNode": "mixserve.node",
    "MixServer": "mixserve.serving",
    "RandomAccessSource": "mixserve.sources",
    "Source": "mixserve.sources",
    "StructuralConfig": "mixserve.module",
    "TokenSource": "mixserve.sources",
    "local_client": "mixserve.local",
    "serve": "mixserve.serving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixserve' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # Python calls __getattr__ only for names that are missing here
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
