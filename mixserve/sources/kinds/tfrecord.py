"""`kind: tfrecord`: TFRecord files, as TensorFlow and TFDS write them."""

from pathlib import Path
from typing import Any, Literal

from mixserve.sources.kinds.base import Name, Paths, SourceConfig
from mixserve.sources.kinds.files import find_files
from mixserve.sources.kinds.records import Record, RecordFields, record_field_specs


class TFRecordConfig(SourceConfig):
    """TFRecord files. `record` says what a record is; `field` names the one field of `bytes` and `npy`."""

    kind: Literal["tfrecord"]
    path: Paths
    record: Record = "example"
    field: Name | None = None
    fields: RecordFields | None = None

    def open(self, folder: Path) -> Any:
        from mixserve.sources.tfrecord_source import TFRecordSource

        return TFRecordSource(
            find_files(self.path, folder),
            record=self.record,
            field=self.field,
            fields=record_field_specs(self.fields),
        )
