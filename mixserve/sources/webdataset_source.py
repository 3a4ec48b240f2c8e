"""WebDataset's tar files -> a source. An index of each file, which is kept, has the place of every sample's members."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mixserve.sources.decoded_source import DecodedSource
from mixserve.sources.decoders import (
    first_of_each,
    json_array,
    missing,
    name_field,
    read_npy,
    stored_bytes,
    stored_json,
    stored_like,
    to_int,
    to_integers,
    wanted_of,
)
from mixserve.sources.fields import FieldSpec, Served, Stored
from mixserve.sources.file_rows import FileRows
from mixserve.sources.kept_index import Index, digest_index, kept_index
from mixserve.sources.open_file import OpenFile
from mixserve.sources.paths import Paths, as_paths
from mixserve.sources.tar_index import index_tar, pack_index, unpack_index
from mixserve_client.schema.text import show

# Extensions, or their last parts, whose files are a decimal number.
_NUMBERS = ("cls", "cls2", "index", "inx")


class WebDatasetSource(DecodedSource):
    """Record r is the sample r of the tar files, one after another; its fields have the members' extensions as names.

    `.cls`, `.cls2`, `.index` and `.inx` are numbers (int64), `.npy` arrays, `.json` numbers or lists of numbers, and
    all others bytes.
    """

    def __init__(self, paths: Paths, *, fields: Sequence[FieldSpec] | None = None, name: str | None = None):
        """Reads the headers of each file once, and keeps an index of it.

        Raises ValueError, which names the file, for files that are compressed, damaged or of another format, if there
        are no samples, if one lacks a field that has no default, or if fields cannot be served; OSError if a file
        cannot be read.
        """
        super().__init__(
            TarSamples(as_paths(paths)),
            MembersDecoder(),
            fields,
            name=name,
            options={"kind": "webdataset"},
            arguments=([paths], {"fields": fields, "name": name}),
        )


class TarSamples:
    """The samples of tar files: the bytes of their members, by extension."""

    def __init__(self, paths: Sequence[Path]):
        self._files = [OpenFile(path) for path in paths]
        self._packed = [kept_index("webdataset/index", file, _index) for file in self._files]
        indices = [unpack_index(packed) for packed in self._packed]
        self._names = sorted({name for index in indices for name in index.names})
        self._tables = [index.table for index in indices]
        self._columns = [index.names for index in indices]
        self._rows = FileRows([len(table) for table in self._tables])

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, record_ids: Sequence[int]) -> list[dict[str, bytes]]:
        found: list[dict[str, bytes]] = [{}] * len(record_ids)
        for number, rows, places in self._rows.group(record_ids):
            file = self._files[number]
            names, ranges = self._ranges(number, rows)
            for place, row in zip(places, ranges, strict=True):
                found[place] = {
                    name: file.read(begin, size) for name, (begin, size) in zip(names, row, strict=True) if begin >= 0
                }
        return found

    def locate(self, record_id: int) -> str:
        number, row = self._rows.place(record_id)
        begin = min(begin for begin in self._tables[number][row, :, 0].tolist() if begin >= 0)
        name = self._files[number].read(begin - 512, 100).split(b"\0", 1)[0].decode("utf-8", "replace")
        return f"{self._files[number].path}, sample {row:,} ({show(name)})"

    def files(self) -> Sequence[OpenFile]:
        return self._files

    def heads(self) -> Sequence[bytes]:
        return [digest_index(packed) for packed in self._packed]

    def announce(self, record_ids: Sequence[int]) -> None:
        for number, rows, _ in self._rows.group(record_ids):
            for row in self._ranges(number, rows)[1]:
                for begin, size in row:
                    if begin >= 0:
                        self._files[number].announce(begin, size)

    def use(self, fields: Sequence[Served]) -> None:
        self._names = sorted({field.spec.source for field in fields})
        needed = {field.spec.source for field in fields if field.spec.default is None}
        for number, table in enumerate(self._tables):
            columns = self._columns[number]
            for name in sorted(needed) if len(table) else ():
                lacks = table[:, columns.index(name), 0] < 0 if name in columns else np.ones(len(table), bool)
                if lacks.any():
                    record_id = self._rows.first(number) + int(np.argmax(lacks))
                    raise ValueError(
                        f"{self.locate(record_id)}: the sample lacks the field {name!r:.100}, as do "
                        f"{int(lacks.sum()) - 1:,} others of the file; give the field a default, or leave them out"
                    )

    def _ranges(self, number: int, rows: list[int]) -> tuple[list[str], list[list[list[int]]]]:
        """The names of the members to read, and per row byte and size of each."""
        columns = self._columns[number]
        names = [name for name in self._names if name in columns]
        return names, self._tables[number][rows][:, [columns.index(name) for name in names]].tolist()


class MembersDecoder:
    """The members of a sample, by the last part of their extension."""

    def stored(
        self, records: Iterable[Mapping[str, bytes]], wanted: Sequence[FieldSpec] | None
    ) -> Mapping[str, Stored | str]:
        return first_of_each(records, wanted, lambda data, name: _stored(data, name, wanted))

    def decode(self, record: Mapping[str, bytes], fields: Sequence[Served]) -> list[np.ndarray]:
        return [_value(record, field) for field in fields]


def _index(file: OpenFile) -> Index:
    return pack_index(index_tar(file))


def _stored(data: bytes, name: str, wanted: Sequence[FieldSpec] | None) -> Stored | str:
    kind = name.rpartition(".")[2]
    if kind in _NUMBERS:
        dtype = wanted_of(name, wanted)[1]
        return Stored(dtype if dtype is not None and dtype.kind in "iu" else np.dtype(np.int64))
    if kind == "npy":
        return stored_like(read_npy(data), name, wanted)
    if kind == "json":
        return stored_json(data, name, wanted)
    return stored_bytes(data, name, wanted)


def _value(record: Mapping[str, bytes], field: Served) -> np.ndarray:
    data = record.get(field.spec.source)
    if data is None:
        return missing(field)
    kind = field.spec.source.rpartition(".")[2]
    try:
        if kind in _NUMBERS:
            return to_integers(_number(data), field.stored.dtype)
        if kind == "npy":
            return read_npy(data)
        return json_array(data, field) if kind == "json" else np.frombuffer(data, np.uint8)
    except ValueError as error:
        raise name_field(error, field) from None


def _number(data: bytes) -> np.ndarray:
    try:
        return np.array(to_int(data), np.int64)
    except (ValueError, OverflowError):
        raise ValueError(f"must be a decimal number of 64 bits, got {show(data)}") from None
