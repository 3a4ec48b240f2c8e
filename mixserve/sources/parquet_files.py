"""Parquet files -> the types of their columns, and their rows, in batches that fit into little memory."""

import io
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mixserve.sources.arrow import Arrow, import_arrow
from mixserve.sources.open_file import OpenFile
from mixserve_client.schema.text import show_names

_MAGIC = b"PAR1"
_LARGEST_FOOTER = 1 << 30
_BATCH_BYTES = 8 << 20
_MOST_ROWS, _FIRST_ROWS = 1 << 16, 256
# Column chunks are read in pieces of this size, not whole: a chunk may be larger than the memory.
_READ_BYTES = 1 << 20


class ParquetFile:
    """A Parquet file: its footer and its schema. Raises ValueError, which names the file, if it is not one."""

    def __init__(self, path: Path):
        self.path = path
        self.file = OpenFile(path)
        self.footer = _read_footer(self.file)
        with _opened(self.file) as parquet:
            self.rows: int = parquet.metadata.num_rows
            self.schema = parquet.schema_arrow
        twice = {name for name in self.schema.names if self.schema.names.count(name) > 1}
        if twice:
            raise ValueError(f"{path}: the columns {show_names(sorted(twice))} occur twice")

    def check_types(self, types: Mapping[str, Arrow]) -> None:
        """Raises ValueError unless the columns have these types."""
        for name, kind in types.items():
            found = self.schema.field(name).type if name in self.schema.names else "not there"
            if found != kind:
                raise ValueError(f"{self.path}: the field {name!r:.100} is {found}, and {kind} in the files before")

    def batches(self, names: Sequence[str]) -> Iterator[Arrow]:
        """The rows in order, with these columns at least. Raises ValueError, which names the file, for damaged data."""
        count = 0
        with _opened(self.file) as parquet:
            limit = _FIRST_ROWS
            for group in range(parquet.metadata.num_row_groups):
                # The footer says how large rows are encoded; in memory they may be a thousand times larger, of which
                # the group before gives an idea.
                rows = min(limit, _rows_for(parquet.metadata.row_group(group)))
                for batch in parquet.iter_batches(rows, row_groups=[group], columns=list(names), use_threads=False):
                    missing = [name for name in names if batch.schema.get_field_index(name) < 0]
                    if missing:  # pyarrow leaves out columns that it does not find
                        raise ValueError(f"the columns {show_names(missing)} cannot be read")
                    yield batch
                    count += batch.num_rows
                    limit = min(_MOST_ROWS, max(1, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
            if count != self.rows:
                raise ValueError(f"it has {count:,} rows, and its footer says {self.rows:,}")
        self.file.check_unchanged()


def _rows_for(group: Arrow) -> int:
    """The number of rows of a row group that fit into a batch as they are encoded, with all their columns."""
    # Not those of the needed columns alone: asking pyarrow for a column's part of a damaged footer ends the process.
    return max(1, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size))


class _Reader(io.RawIOBase):
    """The bytes of an open file, for pyarrow: its path may lead to another file by now, which has another digest."""

    def __init__(self, file: OpenFile):
        super().__init__()
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        """Raises SourceChanged if the file no longer has these bytes."""
        rest = max(0, self._file.size - self._at)
        data = self._file.read(self._at, rest if size < 0 else min(size, rest))
        self._at += len(data)
        return data


@contextmanager
def _opened(file: OpenFile) -> Generator[Arrow, None, None]:
    """Names the file in errors of pyarrow's."""
    path = file.path
    arrow, parquet = import_arrow(), import_arrow("pyarrow.parquet")
    try:
        # Without pre_buffer, which keeps whole groups in memory.
        with parquet.ParquetFile(
            _Reader(file), pre_buffer=False, buffer_size=_READ_BYTES, page_checksum_verification=True
        ) as found:
            yield found
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} cannot be read as Parquet: {error!s:.500}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_footer(file: OpenFile) -> bytes:
    """The footer, which has the schema, and size, position and statistics of every column of every row group."""
    if file.size == 0:
        raise ValueError(f"{file.path} is empty")
    tail = file.read(max(0, file.size - 8), min(8, file.size))
    size = int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != _MAGIC or not 0 < size <= min(file.size - 12, _LARGEST_FOOTER):
        raise ValueError(f"{file.path} is not a Parquet file, or it is cut: it has no footer")
    return file.read(file.size - 8 - size, size)
