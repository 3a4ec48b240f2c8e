"""`kind: mds`: folders of MosaicML's MDS format."""

from pathlib import Path
from typing import Any, Literal

from mixserve.sources.kinds.base import Paths, SourceConfig
from mixserve.sources.kinds.files import find_files
from mixserve.sources.kinds.records import RecordFields, record_field_specs


class MDSConfig(SourceConfig):
    """Folders with an `index.json` and its shards; the fields have the columns' names."""

    kind: Literal["mds"]
    path: Paths
    fields: RecordFields | None = None

    def open(self, folder: Path) -> Any:
        from mixserve.sources.mds_source import MDSSource

        return MDSSource(
            find_files(self.path, folder, or_folders=True),
            fields=record_field_specs(self.fields),
        )
