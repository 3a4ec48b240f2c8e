"""The table of all kinds of sources that a configuration file may have."""

import operator
from functools import reduce
from typing import TYPE_CHECKING, Annotated, get_args

from pydantic import Field

from mixserve.sources.kinds.array_record import ArrayRecordConfig
from mixserve.sources.kinds.arrays import ArraysConfig
from mixserve.sources.kinds.base import SourceConfig
from mixserve.sources.kinds.factory import FactoryConfig
from mixserve.sources.kinds.hdf5 import Hdf5Config
from mixserve.sources.kinds.hf import HfConfig
from mixserve.sources.kinds.mds import MDSConfig
from mixserve.sources.kinds.megatron import MegatronConfig
from mixserve.sources.kinds.parquet import ParquetConfig
from mixserve.sources.kinds.remote import RemoteConfig
from mixserve.sources.kinds.tfrecord import TFRecordConfig
from mixserve.sources.kinds.tokens import TokensConfig
from mixserve.sources.kinds.webdataset import WebDatasetConfig
from mixserve.sources.kinds.zarr import ZarrConfig

_KINDS: tuple[type[SourceConfig], ...] = (
    TokensConfig,
    ArraysConfig,
    HfConfig,
    ParquetConfig,
    FactoryConfig,
    ArrayRecordConfig,
    TFRecordConfig,
    WebDatasetConfig,
    MDSConfig,
    MegatronConfig,
    Hdf5Config,
    ZarrConfig,
    RemoteConfig,
)

# By their names under `kind` in the file.
KINDS: dict[str, type[SourceConfig]] = {get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in _KINDS}

# Pydantic needs the union to pick a class by `kind`; type checkers cannot evaluate one that is built at run time.
if TYPE_CHECKING:
    AnySourceConfig = SourceConfig
else:
    AnySourceConfig = Annotated[reduce(operator.or_, _KINDS), Field(discriminator="kind")]
