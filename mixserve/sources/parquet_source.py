"""Parquet files -> a source: converted once to plain values and offsets, which are then memory-mapped."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from mixserve.sources.arrow import stored_fields
from mixserve.sources.column import Column
from mixserve.sources.column_source import ColumnSource, Shard
from mixserve.sources.converted import keep_converted
from mixserve.sources.digest import digest_files
from mixserve.sources.fields import FieldSpec, Served, serve_fields
from mixserve.sources.memory import Memory
from mixserve.sources.parquet_conversion import convert
from mixserve.sources.parquet_files import ParquetFile
from mixserve.sources.prepared import prepared_folder
from mixserve.sources.reopened import Arguments, reduce_to_paths

File = str | PathLike[str]


class ParquetSource(ColumnSource):
    """Record r is the row r of the Parquet files, one after another.

    The columns that `fields` need (default: all that have a fixed shape) are converted when the source is first opened,
    into a folder of `prepared_folder()` that later sources over the same content find. `dictionaries` has the strings
    of columns that are served as codes.
    """

    def __init__(
        self,
        files: File | Iterable[File],
        fields: Sequence[FieldSpec] | None = None,
        *,
        name: str | None = None,
    ):
        """Raises ImportError without pyarrow, ValueError if a file cannot be read as Parquet or a field cannot be
        served, OSError if a file cannot be read or the folder not be written."""
        paths = [Path(file) for file in ([files] if isinstance(files, str | PathLike) else files)]
        if not paths:
            raise ValueError("a ParquetSource needs at least one file, got none")
        inputs = [ParquetFile(path) for path in paths]
        schema = inputs[0].schema
        try:
            served = serve_fields(stored_fields(schema), fields)
            nulls = _nulls(served)
        except ValueError as error:
            raise ValueError(f"{paths[0]}: {error}") from error
        types = {source: schema.field(source).type for source in nulls}
        for file in inputs:
            file.check_types(types)
        if not sum(file.rows for file in inputs):
            raise ValueError(f"{paths[0]} holds no records")
        options = {"kind": "parquet", "rows": [file.rows for file in inputs], "nulls": nulls}
        self._input_digest = digest_files([file.file for file in inputs], options, [file.footer for file in inputs])
        self._arguments: Arguments = [[str(path) for path in paths]], {"fields": fields, "name": name}
        self._prepared = prepared_folder()
        converted = keep_converted("parquet", self._input_digest, lambda made: convert(inputs, types, nulls, made))
        memory = Memory(converted.maps)
        columns = {source: Column(converted.layouts[source], converted.pieces[source], memory) for source in types}
        shards = [Shard(file.path, [file.rows]) for file in inputs]
        super().__init__(columns, served, memory, shards, name=name)
        strings: dict[str, list[str]] = converted.manifest["dictionaries"]
        self.dictionaries = {
            field.spec.name: strings[field.spec.source] for field in served if field.spec.source in strings
        }

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint: of the Parquet files and the fields."""
        fields = json.dumps([field.description for field in self._served], sort_keys=True)
        return hashlib.sha256(self._input_digest + fields.encode()).digest()

    def __reduce__(self) -> Any:
        return reduce_to_paths(self, self._arguments, self._prepared)


def _nulls(served: Sequence[Served]) -> dict[str, float | None]:
    """What replaces null values, by stored column. Raises ValueError if fields of one column differ in it."""
    found: dict[str, float | None] = {}
    for field in served:
        spec = field.spec
        if found.setdefault(spec.source, spec.null) != spec.null:
            raise ValueError(f"fields.{spec.name}: all fields of {spec.source!r:.100} must have the same null")
    return dict(sorted(found.items()))
