"""mixserve, as a server reads for a batch: the records of a plan, gathered into one array."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sources.contestant import BATCH, Read
from benchmarks.sources.work import LENGTH
from mixserve.build import open_nodes
from mixserve.mixture.leaves import Plan
from mixserve_client.transport.allocator import keep_freed_memory

_WINDOWS = f"sequence_length: {LENGTH + 1}, overlap: 1"
_BYTES = f"field: data, fields: {{data: {{from: data, length: {LENGTH * 4}}}}}"
_FIXED = "fields: {tokens: tokens}"
_RAGGED = f"fields: {{tokens: {{from: tokens, length: {LENGTH}}}}}"
_EXAMPLE = "record: example, fields: {tokens: {from: tokens, as: int64}}"


def tokens(folder: Path) -> Read:
    return _open(folder, f"kind: tokens, path: '*.bin', dtype: uint16, {_WINDOWS}")


def arrays(folder: Path) -> Read:
    return _open(folder, "kind: arrays, path: rows")


def safetensors(folder: Path) -> Read:
    return _open(folder, "kind: arrays, path: rows.safetensors")


def megatron(folder: Path) -> Read:
    return _open(folder, f"kind: megatron, path: ids, {_WINDOWS}")


def megatron_shuffled(folder: Path) -> Read:
    return _open(folder, f"kind: megatron, path: ids, {_WINDOWS}, order: {{seed: 1234}}")


def hf(folder: Path) -> Read:
    return _open(folder, f"kind: hf, path: ., {_RAGGED}")


def parquet(folder: Path) -> Read:
    return _open(folder, f"kind: parquet, path: '*.parquet', {_RAGGED}")


def array_record(folder: Path) -> Read:
    return _open(folder, f"kind: array_record, path: '*.array_record', record: bytes, {_BYTES}")


def array_record_example(folder: Path) -> Read:
    return _open(folder, f"kind: array_record, path: '*.array_record', {_EXAMPLE}")


def tfrecord(folder: Path) -> Read:
    return _open(folder, f"kind: tfrecord, path: '*.tfrecord', record: bytes, {_BYTES}")


def tfrecord_example(folder: Path) -> Read:
    return _open(folder, f"kind: tfrecord, path: '*.tfrecord', {_EXAMPLE}")


def webdataset(folder: Path) -> Read:
    return _open(folder, "kind: webdataset, path: '*.tar', fields: {tokens: npy}")


def mds(folder: Path) -> Read:
    return _open(folder, f"kind: mds, path: ., {_FIXED}")


def hdf5(folder: Path) -> Read:
    return _open(folder, f"kind: hdf5, path: rows.h5, {_FIXED}")


def zarr(folder: Path) -> Read:
    return _open(folder, "kind: zarr, path: {tokens: tokens.zarr}")


def _open(folder: Path, source: str) -> Read:
    config = folder / "mixture.yaml"
    config.write_text(
        f"server: {{prepared: prepared}}\nmixtures: {{train: {{sources: {{data: {{{source}, weight: 1}}}}}}}}\n"
    )
    mixture = open_nodes(config)["train"].mixture
    keep_freed_memory()  # as every server does
    gather, fields, numbers = mixture.host_gather, mixture.fields, np.zeros(BATCH, np.int32)

    def read(record_ids: np.ndarray) -> np.ndarray:
        # A new array for every batch, as for those of the others.
        buffers: dict[str, Any] = {
            field.name: np.empty((len(record_ids), *field.shape), field.dtype) for field in fields
        }
        gather.into(Plan(numbers, record_ids), buffers)
        [batch] = buffers.values()
        return batch.view(np.int32) if batch.dtype == np.uint8 else batch

    return read
