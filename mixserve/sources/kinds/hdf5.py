"""`kind: hdf5`: data sets of HDF5 files."""

from pathlib import Path
from typing import Any, Literal

from mixserve.sources.kinds.base import Paths, SourceConfig
from mixserve.sources.kinds.fields import FixedFields, fixed_field_specs
from mixserve.sources.kinds.files import find_files


class Hdf5Config(SourceConfig):
    """HDF5 files; needs h5py. Contiguous data sets are memory-mapped."""

    kind: Literal["hdf5"]
    path: Paths
    fields: FixedFields | None = None

    def open(self, folder: Path) -> Any:
        from mixserve.sources.hdf5_source import Hdf5Source

        return Hdf5Source(find_files(self.path, folder), fields=fixed_field_specs(self.fields))
