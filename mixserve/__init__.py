"""mixserve: data mixing as a service; every batch is a pure function of (mixture, key, start, size)."""

from typing import TYPE_CHECKING

from mixserve.lazy import lazy_attributes

if TYPE_CHECKING:
    from mixserve.access.certificates import ServerTls
    from mixserve.limits import ServerLimits
    from mixserve.local import local_client
    from mixserve.module import DataSourceModule, StructuralConfig
    from mixserve.node import MixDataSourcesConfig, MixDataSourcesNode
    from mixserve.serving import MixServer, serve
    from mixserve.sources import (
        ArrayRecordSource,
        ArraySource,
        FieldSpec,
        Hdf5Source,
        HfSource,
        MDSSource,
        MegatronSource,
        ParquetSource,
        RandomAccessSource,
        RemoteSource,
        Source,
        TFRecordSource,
        TokenSource,
        WebDatasetSource,
        ZarrSource,
    )
    from mixserve_client.version import __version__ as __version__

__all__ = [
    "ArrayRecordSource",
    "ArraySource",
    "DataSourceModule",
    "FieldSpec",
    "Hdf5Source",
    "HfSource",
    "MDSSource",
    "MegatronSource",
    "MixDataSourcesConfig",
    "MixDataSourcesNode",
    "MixServer",
    "ParquetSource",
    "RandomAccessSource",
    "RemoteSource",
    "ServerLimits",
    "ServerTls",
    "Source",
    "StructuralConfig",
    "TFRecordSource",
    "TokenSource",
    "WebDatasetSource",
    "ZarrSource",
    "local_client",
    "serve",
]

# Imported at first use, so that a command that only calls a server (a health probe every few seconds) never loads JAX.
_HOMES = {
    "ServerLimits": "mixserve.limits",
    "ArrayRecordSource": "mixserve.sources",
    "ArraySource": "mixserve.sources",
    "DataSourceModule": "mixserve.module",
    "FieldSpec": "mixserve.sources",
    "Hdf5Source": "mixserve.sources",
    "HfSource": "mixserve.sources",
    "MDSSource": "mixserve.sources",
    "MegatronSource": "mixserve.sources",
    "MixDataSourcesConfig": "mixserve.node",
    "MixDataSourcesNode": "mixserve.node",
    "MixServer": "mixserve.serving",
    "ParquetSource": "mixserve.sources",
    "RandomAccessSource": "mixserve.sources",
    "RemoteSource": "mixserve.sources",
    "ServerTls": "mixserve.access.certificates",
    "Source": "mixserve.sources",
    "StructuralConfig": "mixserve.module",
    "TFRecordSource": "mixserve.sources",
    "TokenSource": "mixserve.sources",
    "WebDatasetSource": "mixserve.sources",
    "ZarrSource": "mixserve.sources",
    "local_client": "mixserve.local",
    "serve": "mixserve.serving",
}

__getattr__ = lazy_attributes(__name__, _HOMES | {"__version__": "mixserve_client.version"})


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
