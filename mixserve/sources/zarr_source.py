"""Zarr arrays, of the versions 2 and 3 -> a source. tensorstore reads them; Orbax brings it."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from mixserve.sources.chunked_source import ChunkedSource, Shard, StoredArray
from mixserve.sources.digest import digest_files, spread
from mixserve.sources.fields import FieldSpec
from mixserve.sources.open_file import OpenFile
from mixserve.sources.paths import Paths, as_paths
from mixserve_client.errors import InvalidRequest, SourceChanged
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.text import describe_error, show

# Anything of tensorstore, which has no types for checkers.
Store = Any
Path_ = str | PathLike[str]

_V2, _V3 = ".zarray", "zarr.json"
_DEEPEST = 32
_READ_BYTES = 8 << 20


class ZarrSource(ChunkedSource):
    """Record r is the row r of the served arrays. `paths` is the folder of a group, whose arrays are fields by their
    paths in the group; several such folders, whose records follow one another; or the folders of arrays by the names
    of fields.

    `missing`: a chunk without a file is an error (`refuse`), or has the fill value of the array (`fill`). Changes of
    chunks are not noticed, only those of the arrays' metadata. A pickle has the paths. Cannot be read in a process that
    was forked after tensorstore was used: tensorstore ends such processes.
    """

    def __init__(
        self,
        paths: Paths | Mapping[str, Path_],
        *,
        fields: Sequence[FieldSpec] | None = None,
        missing: Literal["refuse", "fill"] = "refuse",
        name: str | None = None,
    ):
        """Raises ValueError, which names the folder, if there are no arrays, metadata are damaged or a field cannot be
        served; OSError if a file cannot be read; InvalidRequest in a forked process."""
        if missing not in ("refuse", "fill"):
            raise ValueError(f"missing: must be refuse or fill, got {show(missing)}")
        is_filled = missing == "fill"
        if isinstance(paths, Mapping):
            given: Any = {field: os.fspath(path) for field, path in cast(Mapping[str, Path_], paths).items()}
            shards = [_open_arrays({field: Path(path) for field, path in given.items()}, is_filled)]
        else:
            given = [os.fspath(path) for path in as_paths(paths)]
            shards = [_open_group(Path(path), is_filled) for path in given]
        keys = {"fields": fields, "missing": missing, "name": name}
        super().__init__(shards, fields, kind="zarr", name=name, arguments=([given], keys))

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint."""
        # Of the values, and not of the files: there may be millions.
        heads = [_digest(array) for arrays in self._arrays for array in arrays]
        return digest_files([], self._options(), heads)


_used_in: int | None = None  # the process that has used tensorstore


def _check_process() -> None:
    """Raises InvalidRequest in a process that was forked after tensorstore was used, which tensorstore would end."""
    global _used_in
    if _used_in not in (None, os.getpid()):
        raise InvalidRequest(
            f"this process ({os.getpid()}) was forked off one that had read Zarr arrays, and tensorstore ends such "
            "processes: start processes with the method 'spawn' or 'forkserver', or fork before the source is opened"
        )
    _used_in = os.getpid()


class _Array:
    """An array that tensorstore reads."""

    mapped = None

    def __init__(self, store: Store):
        self._store = store
        self.shape: tuple[int, ...] = tuple(store.shape)
        self.dtype: np.dtype = store.dtype.numpy_dtype
        self.chunk_rows: int = store.chunk_layout.read_chunk.shape[0] if self.shape else 1

    def begin_read(self, rows: np.ndarray) -> Callable[[], np.ndarray]:
        _check_process()
        return _begin(self._store.oindex[rows])

    def begin_range(self, first: int, stop: int) -> Callable[[], np.ndarray]:
        """Begin to read the rows [first, stop)."""
        return _begin(self._store[first:stop])


def _begin(view: Store) -> Callable[[], np.ndarray]:
    future = view.read()

    def wait() -> np.ndarray:
        try:
            return future.result()
        except (ValueError, RuntimeError) as error:
            hint = ""
            if "NOT_FOUND" in str(error):
                hint = "; if its writer leaves out chunks of nothing but the fill value, give missing: fill"
            raise OSError(f"{describe_error(error, 400)}{hint}") from error

    return wait


def _digest(array: StoredArray) -> bytes:
    """The SHA-256 of all values up to 64 MiB, else of 64 spread pieces."""
    assert isinstance(array, _Array)
    digest = hashlib.sha256()
    rows, row_bytes = array.shape[0], max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    pieces = spread(rows, row_bytes)
    if len(pieces) == 1:
        # In whole chunks, so that none is decoded twice.
        step = array.chunk_rows * max(1, _READ_BYTES // (array.chunk_rows * row_bytes))
        pieces = [(first, min(step, rows - first)) for first in range(0, rows, step)]
        for first, size in pieces:
            digest.update(np.ascontiguousarray(array.begin_range(first, first + size)()).tobytes())
    else:
        for wait in [array.begin_range(first, first + size) for first, size in pieces]:
            digest.update(np.ascontiguousarray(wait()).tobytes())
    return digest.digest()


def _open_arrays(folders: Mapping[str, Path], is_filled: bool) -> Shard:
    if not folders:
        raise ValueError("a source needs at least one array, got none")
    for folder in folders.values():
        if _node(folder) not in (_V2, _V3):
            raise ValueError(f"{folder} is not a Zarr array: {_why(folder)}")
    files, arrays = _open(folders, is_filled)
    return Shard(", ".join(map(str, folders.values())), files, arrays)


def _open_group(folder: Path, is_filled: bool) -> Shard:
    found = _node(folder)
    if found in (_V2, _V3):
        raise ValueError(f"{folder} is one array; give its field a name, such as path: {{x: {folder.name}}}")
    if found is None:
        raise ValueError(f"{folder} is not a Zarr group: {_why(folder)}")
    return Shard(str(folder), *_open(dict(_walk(folder, "", 0)), is_filled))


def _why(folder: Path) -> str:
    if not folder.exists():
        return "it does not exist"
    if not folder.is_dir():
        return "it is a file; unpack it into a folder"
    return f"it has neither {_V3} (version 3) nor {_V2} or .zgroup (version 2)"


def _walk(group: Path, prefix: str, depth: int) -> Iterator[tuple[str, Path]]:
    """The arrays in a group and in the groups in it, by their paths in it."""
    if depth > _DEEPEST:
        raise ValueError(f"{group} is more than {_DEEPEST} groups deep; is there a link to a group above it?")
    for folder in sorted(path for path in group.iterdir() if path.is_dir()):
        found, name = _node(folder), f"{prefix}{folder.name}"
        if found in (_V2, _V3):
            yield name, folder
        elif found is not None:
            yield from _walk(folder, f"{name}/", depth + 1)


def _node(folder: Path) -> str | None:
    """The name of the metadata if the folder is an array, `group` if it is a group, None if it is neither."""
    path = folder / _V3  # first, as zarr-python does: both are there while an array is converted
    if path.is_file():
        try:
            kind = json.loads(path.read_bytes())["node_type"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {describe_error(error, 200)}") from error
        if kind not in ("array", "group"):
            raise ValueError(f"{path} is damaged: its node_type is {show(kind)}")
        return _V3 if kind == "array" else "group"
    return _V2 if (folder / _V2).is_file() else "group" if (folder / ".zgroup").is_file() else None


def _open(folders: Mapping[str, Path], is_filled: bool) -> tuple[list[OpenFile], dict[str, StoredArray | str]]:
    """The metadata files, and the arrays, or why they cannot be served."""
    import tensorstore

    _check_process()
    files = [OpenFile(folder / str(_node(folder))) for folder in folders.values()]
    opening = [
        tensorstore.open(
            {
                "driver": "zarr" if file.path.name == _V2 else "zarr3",
                "kvstore": {"driver": "file", "path": f"{file.path.parent.absolute()}/"},
                # By default a chunk whose file is gone has zeros.
                "fill_missing_data_reads": is_filled,
            },
            open=True,
            read=True,
        )
        for file in files
    ]
    arrays = {name: _wait(future) for name, future in zip(folders, opening, strict=True)}
    for file in files:
        if not file.is_at_path():
            raise SourceChanged(f"{file.path} was replaced while it was opened")
    return files, arrays


def _wait(opening: Any) -> StoredArray | str:
    try:
        store = opening.result()
        dtype_name(store.dtype.numpy_dtype)
        return _Array(store)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return describe_error(error, 500)
