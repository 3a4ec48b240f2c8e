"""The data: 40,000 records of 512 ids in every format, written by the format's own library or by its documented layout.

Nothing here but the records' content is ours; `write` is called in the environment of the benchmark itself.
"""

import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorstore as ts
from array_record.python import array_record_module
from safetensors.numpy import save_file

from benchmarks.sources.work import EOD, LENGTH, RECORDS, SHARDS


def write(kind: str, folder: Path) -> None:
    """Write the files of a kind, unless a whole set of them is there already."""
    if (folder / "whole").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _WRITERS[kind](folder)
    (folder / "whole").touch()


def rows() -> np.ndarray:
    """All records, int32 of shape (RECORDS, LENGTH)."""
    return np.random.default_rng(0).integers(1, 50_000, (RECORDS, LENGTH), np.int32)


def lengths() -> np.ndarray:
    """The lengths of ragged records: 468 to 512."""
    return np.random.default_rng(1).integers(LENGTH - 44, LENGTH + 1, RECORDS)


def shards() -> Iterator[tuple[int, np.ndarray]]:
    """The number and the records of every shard."""
    return iter(enumerate(np.split(rows(), SHARDS)))


def ragged() -> pa.Table:
    """The records without what their lengths leave out."""
    flat = rows()[np.arange(LENGTH) < lengths()[:, None]]
    offsets = np.concatenate([[0], np.cumsum(lengths())]).astype(np.int32)
    return pa.table({"tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))})


def example(row: np.ndarray) -> bytes:
    """A tf.train.Example whose feature `tokens` is an Int64List, packed, by protobuf's wire format."""
    values = b"".join(map(_varint, row.tolist()))
    feature = _field(3, _field(1, values))
    return _field(1, _field(1, _field(1, b"tokens") + _field(2, feature)))


def _tokens(folder: Path) -> None:
    # One id more than the windows need, which overlap by one.
    ids = np.append(rows().reshape(-1), EOD).astype("<u2")
    for number, part in enumerate(np.array_split(ids, SHARDS)):
        part.tofile(folder / f"{number}.bin")


def _arrays(folder: Path) -> None:
    (folder / "rows").mkdir()
    np.save(folder / "rows" / "tokens.npy", rows())


def _safetensors(folder: Path) -> None:
    save_file({"tokens": rows()}, folder / "rows.safetensors")


def _megatron(folder: Path) -> None:
    # A document per record, and one of a single id, since windows of one id more overlap by one.
    ids = np.append(rows().reshape(-1), EOD).astype("<u2")
    ids.tofile(folder / "ids.bin")
    sizes, count = np.append(np.full(RECORDS, LENGTH, "<i4"), np.int32(1)), RECORDS + 1
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, count, count + 1)
    pointers = np.arange(count, dtype="<i8") * (LENGTH * 2)
    ends = np.arange(count + 1, dtype="<i8")
    (folder / "ids.idx").write_bytes(head + sizes.tobytes() + pointers.tobytes() + ends.tobytes())


def _hf(folder: Path) -> None:
    # The layout of `datasets`' save_to_disk: Arrow streams, and two files of JSON.
    table = ragged()
    names = [f"data-{number:05}-of-{SHARDS:05}.arrow" for number in range(SHARDS)]
    step = RECORDS // SHARDS
    for number, name in enumerate(names):
        part = table.slice(number * step, step)
        with pa.OSFile(str(folder / name), "wb") as out, pa.ipc.new_stream(out, part.schema) as stream:
            stream.write_table(part, max_chunksize=1000)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0" * 16}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_split": None}
    state |= {"_output_all_columns": False}
    (folder / "state.json").write_text(json.dumps(state))
    features = {"tokens": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def _parquet(folder: Path) -> None:
    table, step = ragged(), RECORDS // SHARDS
    for number in range(SHARDS):
        path = folder / f"{number}.parquet"
        pq.write_table(table.slice(number * step, step), path, row_group_size=1000, compression="zstd")


def _array_record(folder: Path, encode: Callable[[np.ndarray], bytes]) -> None:
    for number, part in shards():
        writer = array_record_module.ArrayRecordWriter(str(folder / f"{number}.array_record"), "group_size:1")
        for row in part:
            writer.write(encode(row))
        writer.close()


def _tfrecord(folder: Path, encode: Callable[[np.ndarray], bytes]) -> None:
    for number, part in shards():
        with (folder / f"{number}.tfrecord").open("wb") as out:
            for row in part:
                data = encode(row)
                length = struct.pack("<Q", len(data))
                out.write(length + _masked_crc(length) + data + _masked_crc(data))


def _webdataset(folder: Path) -> None:
    for number, part in shards():
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for place, row in enumerate(part):
                content = io.BytesIO()
                np.save(content, row)
                member = tarfile.TarInfo(f"{number * len(part) + place:08}.npy")
                member.size = content.tell()
                content.seek(0)
                tar.addfile(member, content)


def _mds_shapes(folder: Path) -> None:
    """Arrays that begin with their shapes, after the sizes of their samples' columns."""
    axes = struct.pack("<BH", 1 << 2 | 1, LENGTH)  # one axis, in numbers of two bytes
    data_bytes = len(axes) + LENGTH * 4
    head = struct.pack("<I", data_bytes)
    _write_mds(folder, "ndarray:int32", None, len(head) + data_bytes, lambda row: head + axes + row.tobytes())


def _mds(folder: Path) -> None:
    _write_mds(folder, f"ndarray:int32:{LENGTH}", LENGTH * 4, LENGTH * 4, np.ndarray.tobytes)


def _write_mds(
    folder: Path, encoding: str, size: int | None, sample_bytes: int, encode: Callable[[np.ndarray], bytes]
) -> None:
    entries = []
    for number, part in shards():
        name = f"shard.{number:05}.mds"
        offsets = 4 * (len(part) + 2) + sample_bytes * np.arange(len(part) + 1)
        with (folder / name).open("wb") as out:
            out.write(struct.pack("<I", len(part)) + offsets.astype("<u4").tobytes())
            out.writelines(map(encode, part))
        raw = {"basename": name, "bytes": int(offsets[-1]), "hashes": {}}
        entry = {"column_encodings": [encoding], "column_names": ["tokens"], "column_sizes": [size]}
        entry |= {"compression": None, "format": "mds", "hashes": [], "raw_data": raw, "samples": len(part)}
        entries.append(entry | {"size_limit": 1 << 26, "version": 2, "zip_data": None})
    (folder / "index.json").write_text(json.dumps({"shards": entries, "version": 2}))


def _hdf5(folder: Path, **storage: object) -> None:
    with h5py.File(folder / "rows.h5", "w") as file:
        file.create_dataset("tokens", data=rows(), **storage)


def _zarr(folder: Path) -> None:
    chunks = {"name": "regular", "configuration": {"chunk_shape": [16, LENGTH]}}
    metadata = {"shape": [RECORDS, LENGTH], "data_type": "int32", "chunk_grid": chunks, "codecs": [{"name": "bytes"}]}
    store = {"driver": "file", "path": str(folder / "tokens.zarr")}
    array = ts.open({"driver": "zarr3", "kvstore": store, "metadata": metadata}, create=True).result()
    array.write(rows()).result()


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


_WRITERS: dict[str, Callable[[Path], None]] = {
    "tokens": _tokens,
    "arrays": _arrays,
    "safetensors": _safetensors,
    "megatron": _megatron,
    "hf": _hf,
    "parquet": _parquet,
    "array_record": lambda folder: _array_record(folder, np.ndarray.tobytes),
    "array_record_example": lambda folder: _array_record(folder, example),
    "tfrecord": lambda folder: _tfrecord(folder, np.ndarray.tobytes),
    "tfrecord_example": lambda folder: _tfrecord(folder, example),
    "webdataset": _webdataset,
    "mds": _mds,
    "mds_shapes": _mds_shapes,
    "hdf5": _hdf5,
    "hdf5_gzip": lambda folder: _hdf5(folder, chunks=(64, LENGTH), compression="gzip"),
    "zarr": _zarr,
}
