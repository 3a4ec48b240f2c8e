"""`kind: tfrecord`: TFRecord files, as TensorFlow and TFDS write them."""

from pathlib import Path
from typing import Any, Literal

from mixserve.sources.kinds.records import RecordFilesConfig


class TFRecordConfig(RecordFilesConfig):
    """TFRecord files. `record` says what a record is; `field` names the one field of `bytes` and `npy`."""

    kind: Literal["tfrecord"]

    def open(self, folder: Path) -> Any:
        from mixserve.sources.tfrecord_source import TFRecordSource

        return self.open_with(TFRecordSource, folder)
