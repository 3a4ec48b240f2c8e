"""Arrow arrays of every type, what pyarrow reads of them, and folders as `save_to_disk` of datasets writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

RNG = np.random.default_rng(0)


def save_to_disk(folder: Path, files: Sequence[Sequence[pa.RecordBatch]], **options: Any) -> Path:
    """Write the batches of each file. `options` are those of pyarrow's IpcWriteOptions."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{len(files):05}.arrow" for number in range(len(files))]
    for name, batches in zip(names, files, strict=True):
        options_ = pa.ipc.IpcWriteOptions(**options)
        with pa.ipc.new_stream(str(folder / name), batches[0].schema, options=options_) as writer:
            for batch in batches:
                writer.write_batch(batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def batches_of(table: pa.Table, rows: int) -> list[pa.RecordBatch]:
    """The table in batches of at most so many rows."""
    return table.to_batches(max_chunksize=rows)


def values(kind: pa.DataType, count: int) -> pa.Array:
    """Random values of a type that is not nested."""
    if pa.types.is_boolean(kind):
        return pa.array(RNG.integers(0, 2, count).astype(bool))
    if pa.types.is_fixed_size_binary(kind):
        return pa.array([RNG.bytes(kind.byte_width) for _ in range(count)], kind)
    raw = RNG.integers(0, 256, count * kind.bit_width // 8).astype(np.uint8)
    return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(raw)])


def ragged(kind: pa.DataType, rows: int) -> pa.Array:
    """Random lists of random lengths, with lists in them if `kind` is a fixed-size list."""
    ends = np.cumsum([0, *RNG.integers(0, 6, rows)])
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        items = pa.FixedSizeListArray.from_arrays(values(kind.value_type, int(ends[-1]) * size), size)
    else:
        items = values(kind, int(ends[-1]))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), items)


def numbers(value: Any) -> Any:
    """A value of pyarrow's as numbers and lists of numbers."""
    if isinstance(value, str | bytes):
        return list(value.encode() if isinstance(value, str) else value)
    return [numbers(item) for item in value] if isinstance(value, list) else value


def expected(array: pa.ChunkedArray | pa.Array, dtype: np.dtype) -> list[np.ndarray]:
    """Its rows as pyarrow reads them one by one."""
    return [np.array(numbers(value.as_py()), dtype) for value in array]


def same(got: np.ndarray, wanted: np.ndarray) -> bool:
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    if got.dtype.kind == "f":  # a NaN that went through Python has other bits
        return np.array_equal(got, wanted, equal_nan=True)
    return got.tobytes() == wanted.tobytes()
