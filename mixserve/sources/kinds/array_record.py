"""`kind: array_record`: ArrayRecord files, as Grain and TFDS write them."""

from pathlib import Path
from typing import Any, Literal

from mixserve.sources.kinds.base import Name, Paths, SourceConfig
from mixserve.sources.kinds.files import find_files
from mixserve.sources.kinds.records import Record, RecordFields, record_field_specs


class ArrayRecordConfig(SourceConfig):
    """ArrayRecord files. `record` says what a record is; `field` names the one field of `bytes` and `npy`."""

    kind: Literal["array_record"]
    path: Paths
    record: Record = "example"
    field: Name | None = None
    fields: RecordFields | None = None

    def open(self, folder: Path) -> Any:
        from mixserve.sources.array_record_source import ArrayRecordSource

        return ArrayRecordSource(
            find_files(self.path, folder),
            record=self.record,
            field=self.field,
            fields=record_field_specs(self.fields),
        )
