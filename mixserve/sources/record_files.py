"""Files of records that are bytes, and what a record is -> a source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mixserve.sources.decoded_source import DecodedSource, RecordStore, decoder_of
from mixserve.sources.fields import FieldSpec
from mixserve.sources.paths import Paths, as_paths


class RecordFilesSource(DecodedSource):
    """Record r is the record r of the files, one after another, decoded as `record` says."""

    kind: ClassVar[str]

    def __init__(
        self,
        paths: Paths,
        *,
        record: str = "example",
        field: str | None = None,
        fields: Sequence[FieldSpec] | None = None,
        name: str | None = None,
    ):
        """`record` is `example`, `bytes`, `npy` or `json`; `field` names the one field of `bytes` and `npy`.

        Raises ValueError, which names the file, for files that are damaged or of another format, if there are no
        records, or if fields cannot be served; OSError if a file cannot be read.
        """
        decoder = decoder_of(record, field)
        self.records: Any = self.open_records(as_paths(paths))
        super().__init__(
            self.records,
            decoder,
            fields,
            name=name,
            options={"kind": self.kind, "record": record},
            arguments=([paths], {"record": record, "field": field, "fields": fields, "name": name}),
        )

    @staticmethod
    def open_records(paths: Sequence[Path]) -> RecordStore:
        """The records of these files, as bytes. Raises ValueError or OSError."""
        raise NotImplementedError
