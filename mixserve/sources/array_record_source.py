"""ArrayRecord files -> a source. They are read by the format's own library, which Grain brings."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixserve.descriptors import allow_many_files
from mixserve.sources.fields import Served
from mixserve.sources.file_rows import FileRows
from mixserve.sources.fork_gate import ForkGate
from mixserve.sources.open_file import OpenFile
from mixserve.sources.record_files import RecordFilesSource
from mixserve.sources.undecodable import UnreadRecord
from mixserve_client.errors import SourceChanged
from mixserve_client.schema.text import describe_error

_logger = logging.getLogger("mixserve")

# For random access: otherwise each read reads 16 MB ahead, and starts threads, which a forked process does not have.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_FOOTER_BYTES = 64 << 10
_gate = ForkGate()


class ArrayRecordSource(RecordFilesSource):
    """Record r is the record r of the files, one after another, decoded as `record` says.

    Raises ValueError also for files that are cut, damaged or of another format.
    """

    kind = "array_record"

    @staticmethod
    def open_records(paths: Sequence[Path]) -> "ArrayRecords":
        return ArrayRecords(paths)

    def warnings(self) -> list[str]:
        """What makes reading slow, for `mixserve check`."""
        said = self.records.group_warning()
        return [] if said is None else [said]


class ArrayRecords:
    """The records of ArrayRecord files, as bytes."""

    def __init__(self, paths: Sequence[Path]):
        self._files = [OpenFile(path) for path in paths]
        with _gate.no_fork():
            self._readers = [_open(file) for file in self._files]
        self._rows = FileRows([reader.num_records() for reader in self._readers])
        if (said := self.group_warning()) is not None:
            _logger.warning("%s", said)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, record_ids: Sequence[int]) -> list[bytes]:
        found: list[bytes] = [b""] * len(record_ids)
        # Measured: of 300 forks beside six reading threads, 11 children waited for ever for a lock of the library.
        with _gate.no_fork():
            for number, rows, places in self._rows.group(record_ids):
                for place, record in zip(places, self._read(number, rows), strict=True):
                    found[place] = record
        return found

    def locate(self, record_id: int) -> str:
        number, row = self._rows.place(record_id)
        return f"{self._files[number].path}, record {row:,}"

    def files(self) -> Sequence[OpenFile]:
        return self._files

    def heads(self) -> Sequence[bytes]:
        # The options, and the footer, which has the place of every group of records.
        return [
            f"{reader.num_records()} {reader.writer_options_string()}".encode()
            + file.read(max(file.size - _FOOTER_BYTES, 0), min(file.size, _FOOTER_BYTES))
            for file, reader in zip(self._files, self._readers, strict=True)
        ]

    def use(self, fields: Sequence[Served]) -> None:
        """A record is read whole, whichever fields are served."""

    def announce(self, record_ids: Sequence[int]) -> None:
        """Only the library knows where records lie."""

    def _read(self, number: int, rows: list[int]) -> list[bytes]:
        file, reader = self._files[number], self._readers[number]
        try:
            records: list[bytes] = reader.read(rows)
        except RuntimeError as error:
            file.check_unchanged()
            self._raise_first(file, reader, rows)
            raise OSError(f"{file.path} cannot be read: {describe_error(error, 300)}") from error
        if b"" in records:
            file.check_unchanged()  # the library gives b"" for records of a file that was cut, and no error
        return records

    def _raise_first(self, file: OpenFile, reader: Any, rows: list[int]) -> None:
        """Raise the error of the first record that cannot be read alone."""
        for row in rows:
            try:
                reader.read([row])
            except RuntimeError as error:
                failed = UnreadRecord(f"{file.path}, record {row:,}: cannot be read: {describe_error(error, 300)}")
                failed.file = file
                try:
                    raise failed from error
                finally:
                    del failed  # as in error_boundary: its traceback leads to this frame

    def group_warning(self) -> str | None:
        """What to say of the first file whose records are compressed in groups."""
        for file, reader in zip(self._files, self._readers, strict=True):
            found = re.search(r"group_size:(\d+)", reader.writer_options_string() or "")
            if found and found[1] != "1":
                return (
                    f"{file.path} was written with group_size:{found[1]}: to read one record, up to {found[1]} must be "
                    "decompressed; write the files with group_size:1 to read them in random order"
                )
        return None


def _open(file: OpenFile) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(file.path), _OPTIONS)
    if not reader.ok() and allow_many_files():
        reader = ArrayRecordReader(str(file.path), _OPTIONS)
    if not reader.ok():
        raise ValueError(f"{file.path} is not a whole ArrayRecord file: {_why(reader)}")
    if not file.is_at_path():
        raise SourceChanged(f"{file.path} was replaced while it was opened")
    return reader


def _why(reader: Any) -> str:
    try:
        reader.close()
    except RuntimeError as error:
        return describe_error(error, 300) or "it is cut or damaged"
    return "it is cut or damaged"
