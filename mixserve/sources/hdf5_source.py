"""HDF5 files -> a source. Contiguous data sets are mapped; h5py reads those in chunks."""

import importlib
import math
import os
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import numpy as np

from mixserve.sources.chunked_source import ChunkedSource, Shard, StoredArray
from mixserve.sources.fields import FieldSpec
from mixserve.sources.open_file import OpenFile
from mixserve.sources.paths import Paths, as_paths
from mixserve_client.errors import SourceChanged
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.text import describe_error

# Anything of h5py, which has no types for checkers.
Hdf5 = Any


class Hdf5Source(ChunkedSource):
    """Record r is the row r of the served data sets of the files, one after another.

    A field is a data set, by its path in the file, such as `images/train`. A pickle has the paths of the files.
    """

    def __init__(self, paths: Paths, *, fields: Sequence[FieldSpec] | None = None, name: str | None = None):
        """Raises ImportError without h5py; ValueError, which names file and data set, if a file is damaged or of
        another format, or a field cannot be served; OSError if a file cannot be read."""
        shards = [_open(OpenFile(path)) for path in as_paths(paths)]
        given = os.fspath(paths) if isinstance(paths, str | PathLike) else [os.fspath(path) for path in paths]
        super().__init__(shards, fields, kind="hdf5", name=name, arguments=([given], {"fields": fields, "name": name}))


def import_h5py() -> Hdf5:
    """The module h5py. Raises ImportError, which says how to install it."""
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise ImportError(f"h5py is needed for HDF5 files: pip install 'mixserve[hdf5]' ({error})") from error


class _Mapped:
    """A data set that lies in the file as in memory."""

    def __init__(self, values: np.ndarray):
        self.mapped, self.shape, self.dtype = values, values.shape, values.dtype

    def begin_read(self, rows: np.ndarray) -> Callable[[], np.ndarray]:
        # `take` lets go of the interpreter's lock while pages come in, but copies an unaligned array whole.
        is_aligned = self.mapped.flags.aligned
        return lambda: self.mapped.take(rows, axis=0, mode="clip") if is_aligned else self.mapped[rows]


class _Chunked:
    """A data set that h5py reads. h5py has one lock for all of its calls."""

    mapped = None

    def __init__(self, reader: "_Reader", path: str, data: Hdf5):
        self._reader, self._path = reader, path
        self.shape: tuple[int, ...] = data.shape
        self.dtype: np.dtype = data.dtype

    def begin_read(self, rows: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: self._reader.read(self._path, rows)


class _Reader:
    """A file that h5py has open: once in each process, since a handle does not survive a fork."""

    def __init__(self, file: OpenFile, handle: Hdf5):
        self._file = file
        self._handles = {os.getpid(): handle}  # those of processes before a fork are kept and not touched

    def read(self, path: str, rows: np.ndarray) -> np.ndarray:
        """These rows of a data set. Raises SourceChanged if the file has changed."""
        handle = self._handles.get(os.getpid())
        if handle is None:
            handle = self._handles.setdefault(os.getpid(), open_hdf5(self._file))
        values: np.ndarray = handle[path][rows]
        # HDF5 gives zeros for chunks after the end of a file that was cut, unless they are compressed.
        self._file.check_unchanged()
        return values


def open_hdf5(file: OpenFile) -> Hdf5:
    """The file as h5py reads it. Raises ValueError, which names it, if it is damaged; SourceChanged if its path leads
    to another file."""
    h5py = import_h5py()
    if not file.size:
        raise ValueError(f"{file.path} cannot be read as HDF5: it is empty")
    try:
        # Where a file system has no locks, HDF5 would refuse to read.
        handle = h5py.File(file.path, "r", locking="best-effort")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{file.path} cannot be read as HDF5: {describe_error(error, 500)}") from error
    if not file.is_at_path():
        raise SourceChanged(f"{file.path} was replaced after it was opened")
    return handle


def _open(file: OpenFile) -> Shard:
    handle, mapped = open_hdf5(file), file.map()
    reader = _Reader(file, handle)
    arrays: dict[str, StoredArray | str] = {}

    def visit(path: str, item: Hdf5) -> None:
        if hasattr(item, "chunks"):
            arrays[path] = _array(reader, path, item, mapped)

    try:
        handle.visititems(visit)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file.path} cannot be read as HDF5: {describe_error(error, 500)}") from error
    return Shard(str(file.path), [file], arrays)


def _array(reader: _Reader, path: str, data: Hdf5, mapped: np.ndarray) -> StoredArray | str:
    """The data set, or why it cannot be served."""
    h5py = import_h5py()
    try:
        dtype, kind, layout = data.dtype, data.id.get_type(), data.id.get_create_plist()
    except (TypeError, ValueError, RuntimeError) as error:  # types that NumPy does not have
        return f"its type cannot be read: {describe_error(error, 200)}"
    if dtype.kind in "OSUV":
        what = "text" if h5py.check_string_dtype(dtype) else "ragged, or references" if dtype.kind == "O" else dtype
        return f"its values are {what}; only numbers of one dtype can be served"
    if dtype.byteorder == ">":
        return f"its values are big-endian ({dtype.str}); write them as {dtype.newbyteorder('<').str}"
    try:
        dtype_name(dtype)
    except TypeError as error:
        return str(error)
    if kind != h5py.h5t.py_create(dtype):
        return f"its values are not stored as {dtype}, but in a type of their own; write them as {dtype}"
    if data.shape is None:
        return "it is empty, without a shape"
    if data.shape == () or 0 in data.shape:
        return _Mapped(np.empty(data.shape, dtype))
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        return "its values lie in other files; copy them into this one"
    if layout.get_layout() == h5py.h5d.CHUNKED:
        return _chunked(reader, path, data)
    if layout.get_layout() == h5py.h5d.COMPACT:
        return _Mapped(data[()])
    return _contiguous(data, dtype, mapped)


def _contiguous(data: Hdf5, dtype: np.dtype, mapped: np.ndarray) -> StoredArray | str:
    offset, size = data.id.get_offset(), data.size * dtype.itemsize
    if offset is None:
        return "its values were never written"
    if offset + size > len(mapped):
        return f"its values end at byte {offset + size:,}, after the end of the file: it is cut"
    return _Mapped(mapped[offset : offset + size].view(dtype).reshape(data.shape))


def _chunked(reader: _Reader, path: str, data: Hdf5) -> StoredArray | str:
    h5py = import_h5py()
    expected = math.prod(-(-size // chunk) for size, chunk in zip(data.shape, data.chunks, strict=True))
    if (written := data.id.get_num_chunks()) < expected:
        # HDF5 would give their fill value, without an error.
        return f"{expected - written:,} of its {expected:,} chunks were never written"
    filters = data.id.get_create_plist()
    for number in range(filters.get_nfilters()):
        code, _, _, text = filters.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            return f"it is compressed by the filter {code} ({text.decode(errors='replace')}), which h5py does not have"
    return _Chunked(reader, path, data)
