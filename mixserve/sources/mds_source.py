"""MosaicML's MDS data sets -> a source."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from struct import Struct

import numpy as np

from mixserve.error_boundary import WrongRecord
from mixserve.sources.decoded_source import DecodedSource
from mixserve.sources.decoders import (
    first_of_each,
    json_array,
    missing,
    name_field,
    stored_bytes,
    stored_json,
    stored_like,
    to_float,
    to_int,
)
from mixserve.sources.extents import Extents
from mixserve.sources.fields import FieldSpec, Served, Stored, leaf_name
from mixserve.sources.mds_index import Column, Shard, array_dtype, read_index
from mixserve.sources.open_file import OpenFile
from mixserve.sources.paths import Paths, as_paths
from mixserve_client.schema.text import show

_U32 = np.dtype("<u4")


class MDSSource(DecodedSource):
    """Record r is the sample r of the data sets, one after another: folders with an `index.json` and its shards.

    Arrays and numbers have their dtypes, `json`, `str_int` and `str_float` are numbers or lists of numbers, and `str`,
    `bytes`, `jpeg`, `png` and `pil` are bytes. If all columns have values of one size, and no field a length, the
    source is array-backed.
    """

    blocks: Callable[[], Sequence[Mapping[str, np.ndarray]]]  # of array-backed ones alone

    def __init__(self, folders: Paths, *, fields: Sequence[FieldSpec] | None = None, name: str | None = None):
        """Raises ValueError, which names the file, for shards that are compressed, or are not as their index says, if
        there are no samples, or if fields cannot be served; OSError if a file cannot be read."""
        samples = MDSSamples(as_paths(folders))
        super().__init__(
            samples,
            ColumnsDecoder(samples.columns),
            fields,
            name=name,
            options={"kind": "mds", "columns": [column[:3] for column in samples.columns]},
            arguments=([folders], {"fields": fields, "name": name}),
        )
        # A length pads or cuts, or has a field of its own: those are no bytes of the file.
        if samples.is_even and not any(field.stored.is_ragged for field in self._served):
            blocks = samples.blocks(self._served)
            self.blocks = lambda: blocks


class MDSSamples:
    """The samples of MDS shards, as the encoded bytes of their columns, in the columns' order."""

    def __init__(self, folders: Sequence[Path]):
        shards: list[Shard] = []
        self.columns: list[Column] = []
        for folder in folders:
            found, columns = read_index(folder)
            if self.columns and columns != self.columns:
                raise ValueError(f"{folder} and {folders[0]} have different columns")
            self.columns = columns
            shards += found
        files = [OpenFile(shard.path) for shard in shards]
        # Where samples begin, and the last one ends: a copy of 4 bytes per sample, since a map could be cut.
        self._offsets = [_read_offsets(file, shard) for file, shard in zip(files, shards, strict=True)]
        self._samples = Extents(files, self._offsets)
        self._variable = [number for number, column in enumerate(self.columns) if column.size is None]
        self._sizes = [column.size or 0 for column in self.columns]
        self._head = Struct(f"<{len(self._variable)}I")
        self._hashes = [shard.hashes for shard in shards]

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def is_even(self) -> bool:
        """Whether all samples have the same number of bytes, and their values the same places in them."""
        return all(column.size is not None and column.kind == "array" for column in self.columns)

    def blocks(self, fields: Sequence[Served]) -> list[dict[str, np.ndarray]]:
        """The fields of the samples as arrays in the files, mapped, if samples are even."""
        places = dict(zip((column.name for column in self.columns), accumulate([0, *self._sizes]), strict=False))
        blocks: list[dict[str, np.ndarray]] = []
        for file, offsets in zip(self.files(), self._offsets, strict=True):
            count, size = len(offsets) - 1, sum(self._sizes)
            if (np.diff(offsets) != size).any():
                raise ValueError(f"{file.path} has samples that have not {size} bytes, as their columns do")
            rows = file.map()[offsets[0] :].reshape(count, size)
            if count:
                blocks.append(
                    {
                        leaf_name(field.spec.name): _column(rows, places[field.spec.source], field.stored)
                        for field in fields
                    }
                )
        return blocks

    def read(self, record_ids: Sequence[int]) -> list[list[bytes]]:
        samples = self._samples.read(record_ids)
        return [self._split(record_id, sample) for record_id, sample in zip(record_ids, samples, strict=True)]

    def locate(self, record_id: int) -> str:
        file, row, byte = self._samples.place(record_id)
        return f"{file.path}, sample {row:,}, byte {byte:,}"

    def files(self) -> Sequence[OpenFile]:
        return self._samples.files

    def heads(self) -> Sequence[bytes]:
        return [
            hashes.encode() + offsets[:: max(1, len(offsets) >> 20)].tobytes()
            for hashes, offsets in zip(self._hashes, self._offsets, strict=True)
        ]

    def use(self, fields: Sequence[Served]) -> None:
        """A sample is read whole, whichever fields are served."""

    def announce(self, record_ids: Sequence[int]) -> None:
        self._samples.announce(record_ids)

    def _split(self, record_id: int, sample: bytes) -> list[bytes]:
        """The encoded columns of a sample: the sizes of those that have no fixed one come first, then all of them."""
        head, sizes = self._head.size, self._sizes.copy()
        if len(sample) >= head:
            for number, size in zip(self._variable, self._head.unpack_from(sample), strict=True):
                sizes[number] = size
        if head + sum(sizes) != len(sample):
            file, row, _ = self._samples.place(record_id)
            file.check_unchanged()
            raise WrongRecord(f"{file.path}, sample {row:,}: it has {len(sample):,} bytes, and its columns need others")
        columns: list[bytes] = []
        for size in sizes:
            columns.append(sample[head : head + size])
            head += size
        return columns


class ColumnsDecoder:
    """The encoded columns of a sample."""

    def __init__(self, columns: Sequence[Column]):
        self._columns = columns
        self._numbers = {column.name: number for number, column in enumerate(columns)}

    def stored(
        self, records: Iterable[Sequence[bytes]], wanted: Sequence[FieldSpec] | None
    ) -> Mapping[str, Stored | str]:
        named = (
            {column.name: (column, data) for column, data in zip(self._columns, record, strict=True)}
            for record in records
        )
        return first_of_each(named, wanted, lambda found, _: _stored(found[0], found[1], wanted))

    def decode(self, record: Sequence[bytes], fields: Sequence[Served]) -> list[np.ndarray]:
        return [self._value(record, field) for field in fields]

    def _value(self, record: Sequence[bytes], field: Served) -> np.ndarray:
        number = self._numbers.get(field.spec.source)
        if number is None:
            return missing(field)
        column, data = self._columns[number], record[number]
        try:
            if column.kind == "array":
                return _array(column, data)
            if column.kind == "bytes":
                return np.frombuffer(data, np.uint8)
            return json_array(_as_json(column, data), field)
        except ValueError as error:
            raise name_field(error, field) from None


def _read_offsets(file: OpenFile, shard: Shard) -> np.ndarray:
    if file.size != shard.size:
        raise ValueError(
            f"{file.path} has {file.size:,} bytes, and its index says {shard.size:,}: it is cut or another"
        )
    head = 4 * (shard.samples + 2)
    if head > file.size:
        raise ValueError(f"{file.path} has {file.size:,} bytes, too few for {shard.samples:,} samples")
    numbers = np.frombuffer(file.read(0, head), _U32)
    offsets = numbers[1:]
    if numbers[0] != shard.samples:
        raise ValueError(f"{file.path} holds {numbers[0]:,} samples, and its index says {shard.samples:,}")
    if offsets[0] < head or offsets[-1] != file.size or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"{file.path} is not an MDS shard, or is damaged: its samples do not follow one another")
    return offsets


def _column(rows: np.ndarray, place: int, stored: Stored) -> np.ndarray:
    """The values at a place in every row of bytes."""
    size = stored.dtype.itemsize * math.prod(stored.shape)
    return rows[:, place : place + size].view(stored.dtype).reshape(len(rows), *stored.shape)


def _stored(column: Column, data: bytes, wanted: Sequence[FieldSpec] | None) -> Stored | str:
    if column.kind == "array":
        return stored_like(_array(column, data), column.name, wanted)
    if column.kind == "bytes":
        return stored_bytes(data, column.name, wanted)
    if column.kind in ("json", "str_int", "str_float"):
        return stored_json(_as_json(column, data), column.name, wanted)
    return column.kind


def _as_json(column: Column, data: bytes) -> bytes:
    """The text as JSON, which has other names for floats that are no numbers. Raises ValueError."""
    if column.kind == "json":
        return data
    try:
        return json.dumps(to_int(data) if column.kind == "str_int" else to_float(data)).encode()
    except ValueError:
        raise ValueError(f"must be a number, got {show(data)}") from None


def _array(column: Column, data: bytes) -> np.ndarray:
    """The array that begins with its dtype and shape unless the column has them. Raises ValueError."""
    at, dtype, shape = 0, column.dtype, column.shape
    if dtype is None:
        dtype, at = array_dtype(data[0] if data else -1), 1
    if shape is None:
        if len(data) <= at:
            raise ValueError("has an array without a shape")
        axes, size = data[at] >> 2, 1 << (data[at] & 3)
        shape_bytes = data[at + 1 : at + 1 + axes * size]
        at += 1 + axes * size
        shape = tuple(np.frombuffer(shape_bytes, f"<u{size}").tolist()) if len(shape_bytes) == axes * size else (-1,)
    count = 1
    for length in shape:
        count *= length
    if len(data) - at != count * dtype.itemsize or count < 0:
        raise ValueError(f"has {len(data) - at} bytes for an array of the shape {list(shape)} of {dtype}")
    return np.frombuffer(data, dtype, count, at).reshape(shape)
