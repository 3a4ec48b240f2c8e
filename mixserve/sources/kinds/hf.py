"""`kind: hf`: data sets that `save_to_disk` of Hugging Face's `datasets` wrote."""

from pathlib import Path
from typing import Any, Literal

from mixserve.sources.kinds.base import Paths, SourceConfig
from mixserve.sources.kinds.fields import Fields, field_specs
from mixserve.sources.kinds.files import find_files


class HfConfig(SourceConfig):
    """Folders that `save_to_disk` wrote, memory-mapped; needs pyarrow, not `datasets`."""

    kind: Literal["hf"]
    path: Paths
    fields: Fields | None = None

    def open(self, folder: Path) -> Any:
        from mixserve.sources.hf_source import HfSource

        return HfSource(find_files(self.path, folder, or_folders=True), field_specs(self.fields))
