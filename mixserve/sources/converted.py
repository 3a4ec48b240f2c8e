"""Columns that were converted from another format: a folder of raw values and offsets, and a list of its files."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixserve.sources.column import Layout, Piece
from mixserve.sources.digest import digest_files
from mixserve.sources.fields import Stored
from mixserve.sources.memory import address_of
from mixserve.sources.open_file import OpenFile
from mixserve.sources.prepared import kept, remove_damaged

_logger = logging.getLogger("mixserve")

_MANIFEST = "columns.json"
# In the names of folders: a version of mixserve that writes other files does not find those of this one.
_VERSION = 2
_OFFSETS = np.dtype(np.int64)
_DIGEST = "sha256"


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

    def write(self, array: np.ndarray) -> None:
        data = array.reshape(-1).view(np.uint8).data
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
        return {"file": self._path.name, "bytes": self._size}

    def _explain(self, error: OSError) -> OSError:
        size = f"after {self._size:,} bytes of this file"
        return OSError(error.errno, f"{error.strerror} {size}", str(self._path))


def write_manifest(folder: Path, columns: Sequence[dict[str, Any]], shard_rows: Sequence[int], **more: Any) -> None:
    """Write the list of the folder's files. `more` is returned by `open_converted` as it is."""
    content = {"version": _VERSION, "columns": list(columns), "rows": list(shard_rows), **more}
    files = [OpenFile(folder / file["file"]) for column in columns for file in column["files"]]
    (folder / _MANIFEST).write_text(json.dumps(content | {_DIGEST: _digest(files, content)}, indent=1))


def _digest(files: Sequence[OpenFile], content: dict[str, Any]) -> str:
    """Of the manifest without its digest, and of the files: all of their bytes, or the pieces that `spread` says."""
    return digest_files(files, {key: value for key, value in content.items() if key != _DIGEST}).hex()


class Converted(NamedTuple):
    """An opened folder: maps of its files, and by column its layout and the piece of each shard."""

    maps: list[np.ndarray]
    layouts: dict[str, Layout]
    pieces: dict[str, list[Piece]]
    rows: list[int]
    manifest: dict[str, Any]


def keep_converted(name: str, digest: bytes, make: Callable[[Path], None]) -> Converted:
    """What `make(folder)` writes, from the prepared folder: made if it is not there, and again if it is damaged.

    Raises ValueError, which names the folder, if that cannot be removed, or is damaged at once; OSError if the prepared
    folder cannot be used; and what `make` raises.
    """
    named = f"{name}-v{_VERSION}"
    folder = kept(named, digest, make)
    try:
        return open_converted(folder)
    except ValueError as error:
        _logger.warning("%s; it is made again", error)
    try:
        remove_damaged(folder, lambda: _is_damaged(folder))
    except OSError as error:
        raise ValueError(f"{folder} is damaged, and cannot be removed ({error}): remove it, and start again") from error
    return open_converted(kept(named, digest, make))


def _is_damaged(folder: Path) -> bool:
    try:
        open_converted(folder)
    except ValueError:
        return True
    return False


def open_converted(folder: Path) -> Converted:
    """Map the files of `folder`. Raises ValueError, which names the folder, if they are not as they were written;
    OSError if one cannot be read."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        if manifest["version"] != _VERSION:
            raise ValueError(f"it has the version {manifest['version']!s:.20}, not {_VERSION}")
        found = Converted([], {}, {}, manifest["rows"], manifest)
        opened = [[_open_file(folder, file) for file in column["files"]] for column in manifest["columns"]]
        # Before they are used: numbers of a damaged manifest may be anything.
        if _digest([file for files in opened for file in files], manifest) != manifest[_DIGEST]:
            raise ValueError("its bytes are others than were written")
        for column, files in zip(manifest["columns"], opened, strict=True):
            _open_column(column, files, found)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} is damaged: {error!s:.300}") from error
    return found


def _open_column(column: dict[str, Any], files: Sequence[OpenFile], found: Converted) -> None:
    maps = [file.map() for file in files]
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


def _open_file(folder: Path, file: dict[str, Any]) -> OpenFile:
    opened = OpenFile(folder / file["file"])
    if opened.size != file["bytes"]:
        raise ValueError(f"{file['file']} has {opened.size:,} bytes, not {file['bytes']:,}")
    return opened
