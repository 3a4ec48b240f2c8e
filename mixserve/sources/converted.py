"""Columns that were converted from another format: a folder of raw values and offsets, and a list of its files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixserve.sources.column import Layout, Piece
from mixserve.sources.fields import Stored
from mixserve.sources.memory import address_of
from mixserve.sources.open_file import map_file

_MANIFEST = "columns.json"
_VERSION = 1
_HEAD_BYTES = 64 << 10
_OFFSETS = np.dtype(np.int64)


class ColumnWriter:
    """Appends rows to the two files of a column in `folder`: values, and offsets if it is ragged."""

    def __init__(self, folder: Path, number: int, name: str, stored: Stored):
        self._name, self._stored = name, stored
        self._values = _Output(folder / f"{number}.values")
        self._offsets = _Output(folder / f"{number}.offsets") if stored.is_ragged else None
        self.rows = self._end = 0
        if self._offsets is not None:
            self._offsets.write(np.zeros(1, _OFFSETS))

    def append(self, values: np.ndarray, lengths: np.ndarray | None) -> None:
        """Append rows: fixed ones, or all values of ragged ones and their numbers of items. Raises OSError."""
        self._values.write(np.ascontiguousarray(values, self._stored.dtype))
        if self._offsets is None or lengths is None:
            self.rows += len(values)
            return
        ends = self._end + np.cumsum(lengths, dtype=_OFFSETS)
        self._offsets.write(ends)
        self.rows += len(ends)
        self._end = int(ends[-1]) if len(ends) else self._end

    def close(self) -> dict[str, Any]:
        """Close the files; returns the column's part of the manifest. Raises OSError."""
        files = [output.close() for output in (self._values, self._offsets) if output is not None]
        stored = self._stored
        return {
            "name": self._name,
            "dtype": stored.dtype.name,
            "shape": list(stored.shape),
            "ragged": stored.is_ragged,
            "files": files,
        }


class _Output:
    """A file that is written once, from its first byte to its last."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("xb", buffering=0)
        self._size = 0
        self._head = hashlib.sha256()

    def write(self, array: np.ndarray) -> None:
        data = array.reshape(-1).view(np.uint8).data
        self._head.update(data[: max(0, _HEAD_BYTES - self._size)])
        self._size += len(data)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise self._explain(error) from error

    def close(self) -> dict[str, Any]:
        try:
            self._file.close()
        except OSError as error:
            raise self._explain(error) from error
        return {"file": self._path.name, "bytes": self._size, "head": self._head.hexdigest()}

    def _explain(self, error: OSError) -> OSError:
        size = f"after {self._size:,} bytes of this file"
        return OSError(error.errno, f"{error.strerror} {size}", str(self._path))


def write_manifest(folder: Path, columns: Sequence[dict[str, Any]], shard_rows: Sequence[int], **more: Any) -> None:
    """Write the list of the folder's files. `more` is returned by `open_converted` as it is."""
    content = {"version": _VERSION, "columns": list(columns), "rows": list(shard_rows), **more}
    (folder / _MANIFEST).write_text(json.dumps(content, indent=1))


class Converted(NamedTuple):
    """An opened folder: maps of its files, and by column its layout and the piece of each shard."""

    maps: list[np.ndarray]
    layouts: dict[str, Layout]
    pieces: dict[str, list[Piece]]
    rows: list[int]
    manifest: dict[str, Any]


def open_converted(folder: Path) -> Converted:
    """Map the files of `folder`. Raises ValueError, which names the folder, if they are not as they were written."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        found = Converted([], {}, {}, manifest["rows"], manifest)
        for column in manifest["columns"]:
            _open_column(folder, column, found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged: {error!s:.300}; remove it, and it is made again") from error
    return found


def _open_column(folder: Path, column: dict[str, Any], found: Converted) -> None:
    maps = [_open_file(folder, file) for file in column["files"]]
    found.maps.extend(maps)
    stored = Stored(np.dtype(column["dtype"]), tuple(column["shape"]), column["ragged"])
    layout = Layout(stored, stored.dtype, offsets=_OFFSETS if stored.is_ragged else None)
    begins = np.cumsum([0, *found.rows]).tolist()
    total = len(maps[0]) // stored.dtype.itemsize
    values = address_of(maps[0]) if total else 0
    if len(maps) > 1 and len(maps[1]) != (begins[-1] + 1) * _OFFSETS.itemsize:
        raise ValueError(f"the offsets of {column['name']!r:.100} are not those of {begins[-1]} rows")
    found.layouts[column["name"]] = layout
    found.pieces[column["name"]] = [
        Piece(rows, values, total, offsets=address_of(maps[1]) + begin * _OFFSETS.itemsize)
        if stored.is_ragged
        else Piece(rows, values, total, begin * layout.width)
        for rows, begin in zip(found.rows, begins[:-1], strict=True)
    ]


def _open_file(folder: Path, file: dict[str, Any]) -> np.ndarray:
    mapped = map_file(folder / file["file"])
    if len(mapped) != file["bytes"]:
        raise ValueError(f"{file['file']} has {len(mapped):,} bytes, not {file['bytes']:,}")
    if hashlib.sha256(mapped[:_HEAD_BYTES].tobytes()).hexdigest() != file["head"]:
        raise ValueError(f"the first bytes of {file['file']} are others than were written")
    return mapped
