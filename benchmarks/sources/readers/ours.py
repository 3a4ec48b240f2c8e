"""mixserve, as a server reads for a batch: the records of a plan, gathered into one array."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sources.contestant import BATCH, Read
from benchmarks.sources.work import LENGTH
from mixserve.build import open_nodes
from mixserve.mixture.leaves import Plan
from mixserve_client.transport.allocator import keep_freed_memory

_WINDOWS = f"sequence_length: {LENGTH + 1}, overlap: 1"
_BYTES = f"record: bytes, field: data, fields: {{data: {{from: data, length: {LENGTH * 4}}}}}"
_FIXED = "fields: {tokens: tokens}"
_RAGGED = f"fields: {{tokens: {{from: tokens, length: {LENGTH}}}}}"
_EXAMPLE = "record: example, fields: {tokens: {from: tokens, as: int64}}"
_SOURCES = {
    "tokens": f"kind: tokens, path: '*.bin', dtype: uint16, {_WINDOWS}",
    "arrays": "kind: arrays, path: rows",
    "safetensors": "kind: arrays, path: rows.safetensors",
    "megatron": f"kind: megatron, path: ids, {_WINDOWS}",
    "megatron_shuffled": f"kind: megatron, path: ids, {_WINDOWS}, order: {{seed: 1234}}",
    "hf": f"kind: hf, path: ., {_RAGGED}",
    "parquet": f"kind: parquet, path: '*.parquet', {_RAGGED}",
    "array_record": f"kind: array_record, path: '*.array_record', {_BYTES}",
    "array_record_example": f"kind: array_record, path: '*.array_record', {_EXAMPLE}",
    "tfrecord": f"kind: tfrecord, path: '*.tfrecord', {_BYTES}",
    "tfrecord_example": f"kind: tfrecord, path: '*.tfrecord', {_EXAMPLE}",
    "webdataset": "kind: webdataset, path: '*.tar', fields: {tokens: npy}",
    "mds": f"kind: mds, path: ., {_FIXED}",
    "hdf5": f"kind: hdf5, path: rows.h5, {_FIXED}",
    "zarr": "kind: zarr, path: {tokens: tokens.zarr}",
}


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(name)
    return partial(_open, _SOURCES[name])


def _open(source: str, folder: Path) -> Read:
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
