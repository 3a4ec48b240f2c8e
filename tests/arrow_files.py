"""Folders as `save_to_disk` of Hugging Face's datasets writes them, made with pyarrow alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa


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
