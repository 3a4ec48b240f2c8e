"""`kind: array_record`: ArrayRecord files, as Grain and TFDS write them."""

from pathlib import Path
from typing import Any, Literal

from mixserve.sources.kinds.records import RecordFilesConfig


class ArrayRecordConfig(RecordFilesConfig):
    """ArrayRecord files. `record` says what a record is; `field` names the one field of `bytes` and `npy`."""

    kind: Literal["array_record"]

    def open(self, folder: Path) -> Any:
        from mixserve.sources.array_record_source import ArrayRecordSource

        return self.open_with(ArrayRecordSource, folder)
