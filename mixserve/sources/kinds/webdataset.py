"""`kind: webdataset`: tar files of samples, as WebDataset writes them."""

from pathlib import Path
from typing import Any, Literal

from mixserve.sources.kinds.base import Paths, SourceConfig
from mixserve.sources.kinds.files import find_files
from mixserve.sources.kinds.records import RecordFields, record_field_specs


class WebDatasetConfig(SourceConfig):
    """Tar files of samples; the fields have the members' extensions as names."""

    kind: Literal["webdataset"]
    path: Paths
    fields: RecordFields | None = None

    def open(self, folder: Path) -> Any:
        from mixserve.sources.webdataset_source import WebDatasetSource

        return WebDatasetSource(find_files(self.path, folder), fields=record_field_specs(self.fields))
