"""`kind: parquet`: Parquet files, which are converted once."""

from pathlib import Path
from typing import Any, Literal

from mixserve.sources.kinds.base import Paths, SourceConfig
from mixserve.sources.kinds.fields import Fields, field_specs
from mixserve.sources.kinds.files import find_files


class ParquetConfig(SourceConfig):
    """Parquet files, converted at the first start into a folder under `server.prepared`; needs pyarrow."""

    kind: Literal["parquet"]
    path: Paths
    fields: Fields | None = None

    def open(self, folder: Path) -> Any:
        from mixserve.sources.parquet_source import ParquetSource

        return ParquetSource(find_files(self.path, folder), field_specs(self.fields))
