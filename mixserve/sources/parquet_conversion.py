"""Parquet files -> a folder of plain values and offsets, in memory that does not grow with the files."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mixserve.sources.arrow import Arrow, find_piece, layout_of
from mixserve.sources.column import Column, Rows
from mixserve.sources.converted import ColumnWriter, write_manifest
from mixserve.sources.fields import FieldSpec, Served
from mixserve.sources.memory import Memory
from mixserve.sources.parquet_files import ParquetFile
from mixserve.sources.progress import show_progress


def convert(
    files: Sequence[ParquetFile], types: Mapping[str, Arrow], nulls: Mapping[str, float | None], folder: Path
) -> None:
    """Write the columns of these types to `folder`, which is made; null values become those of `nulls`.

    Raises ValueError, which names file, field and row, for what cannot be converted, and OSError.
    """
    folder.mkdir()
    total = sum(file.rows for file in files)
    what = f"converting {total:,} rows of {len(files):,} Parquet files"
    with ExitStack() as stack:
        done = stack.enter_context(show_progress(what, total, folder.parent))
        columns = [
            stack.enter_context(_ColumnConversion(folder, number, name, kind, nulls[name]))
            for number, (name, kind) in enumerate(types.items())
        ]
        converted = 0
        for file in files:
            row = 0
            for batch in file.batches(list(types)):
                for column in columns:
                    column.append(batch, file.path, row)
                row += batch.num_rows
                done(converted + row)
            converted += row
        strings = {column.name: list(column.codes) for column in columns if column.is_coded}
        parts = [column.writer.close() for column in columns]
        write_manifest(folder, parts, [file.rows for file in files], dictionaries=strings)


class _ColumnConversion:
    """A column on its way from batches to files. Strings of dictionaries get codes in the order of their appearance:
    each batch may have a dictionary of its own."""

    def __init__(self, folder: Path, number: int, name: str, kind: Arrow, null: float | None):
        self.name = name
        self.codes: dict[str, int] = {}
        self.is_coded = hasattr(kind, "index_type")
        self._layout, self._null = layout_of(kind), null
        self._served = Served(FieldSpec(name, name, null=null), self._layout.stored, self._layout.stored.dtype)
        self.writer = ColumnWriter(folder, number, name, self._layout.stored)

    def append(self, batch: Arrow, path: Path, first_row: int) -> None:
        """Append the rows of a batch, the first of which is `first_row` of the file. Raises ValueError or OSError."""
        array = batch.column(batch.schema.get_field_index(self.name))
        try:
            piece = find_piece(self.name, array, first_row, nulls=self._null is not None)
            stored = array.indices if self.is_coded else array
            owners = [np.frombuffer(part, np.uint8) for part in stored.buffers() if part is not None and part.size]
            column = Column(self._layout, [piece], Memory(owners))
            if self._layout.stored.is_ragged:
                values, counts = column.join(self._null)
                self.writer.append(values, counts // self._layout.width)
                return
            rows = np.arange(len(array))
            values = column.take(self._served, Rows(np.zeros_like(rows), rows, rows))[self.name]
            self.writer.append(self._encode(values, array) if self.is_coded else values, None)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _encode(self, values: np.ndarray, array: Arrow) -> np.ndarray:
        """The codes of the column for those of the array's dictionary; nulls are what they are."""
        strings = array.dictionary.to_pylist()
        if None in strings:
            raise ValueError(f"the dictionary of the field {self.name!r:.100} has a null")
        known = np.array([self.codes.setdefault(text, len(self.codes)) for text in strings], values.dtype)
        is_null = np.asarray(array.is_null())
        return np.where(is_null, values, known[np.where(is_null, 0, values)]) if len(known) else values

    def __enter__(self) -> "_ColumnConversion":
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()
