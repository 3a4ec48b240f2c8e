"""The formats' own loaders, each used as its documentation shows for records at random."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np

from benchmarks.sources.contestant import Read
from benchmarks.sources.work import EOD, LENGTH, RECORDS


def tokens(folder: Path) -> Read:
    """Slices of memory maps, stacked, as nanoGPT's `get_batch`; files are joined as mixserve joins them."""
    window = token_window(folder)
    return lambda ids: np.stack([window(record_id) for record_id in ids.tolist()])


def token_window(folder: Path) -> Callable[[int], np.ndarray]:
    files = [np.memmap(path, "<u2", "r") for path in sorted(folder.glob("*.bin"))]
    ends = np.cumsum([len(file) for file in files])

    def window(record_id: int) -> np.ndarray:
        begin, parts, left = record_id * LENGTH, [], LENGTH + 1
        while left:
            number = int(np.searchsorted(ends, begin, "right"))
            file = files[number]
            at = begin - int(ends[number]) + len(file)
            part = file[at : at + left]
            parts.append(part)
            begin, left = begin + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return window


def arrays(folder: Path) -> Read:
    rows = np.load(folder / "rows" / "tokens.npy", mmap_mode="r")
    return lambda ids: rows[ids]


def safetensors(folder: Path) -> Read:
    row = safetensors_row(folder)
    return lambda ids: np.stack([row(record_id) for record_id in ids.tolist()])


def safetensors_row(folder: Path) -> Callable[[int], np.ndarray]:
    from safetensors import safe_open

    rows = safe_open(folder / "rows.safetensors", "numpy").get_slice("tokens")
    return lambda record_id: rows[record_id]


def megatron(folder: Path) -> Read:
    window = megatron_window(folder)
    return lambda ids: np.stack([window(record_id) for record_id in ids.tolist()])


def megatron_window(folder: Path) -> Callable[[int], np.ndarray]:
    """Windows in the stored order from megatron-core's IndexedDataset; a document is a window, less its last id."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = IndexedDataset(str(folder / "ids"))

    def window(record_id: int) -> np.ndarray:
        return np.concatenate([documents.get(record_id), documents.get(record_id + 1, 0, 1)])

    return window


def megatron_shuffled(folder: Path) -> Read:
    """megatron-core's GPTDataset, which makes labels, a loss mask and positions as well."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    tokenizer: Any = SimpleNamespace(eod=EOD, pad=-1, vocab_size=50_000, unique_identifiers={"class": "ids"})
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=LENGTH,
        blend=([str(folder / "ids")], None),
        split="1",
        path_to_cache=None,
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    documents = IndexedDataset(str(folder / "ids"))
    dataset = GPTDataset(
        documents, str(folder / "ids"), np.arange(RECORDS + 1, dtype=np.int32), None, Split.train, config
    )
    # mixserve has the same samples, before Megatron shuffles them once more.
    places = np.argsort(dataset.shuffle_index)
    return lambda ids: np.stack([dataset[place]["tokens"].numpy() for place in places[ids].tolist()])


def hf_numpy(folder: Path) -> Read:
    rows = hf_rows(folder, "numpy")
    return lambda ids: pad(rows[ids.tolist()]["tokens"])


def hf_arrow(folder: Path) -> Read:
    """Rows as an Arrow table: the fastest way that `datasets` has."""
    rows = hf_rows(folder, "arrow")

    def read(ids: np.ndarray) -> np.ndarray:
        column = rows[ids.tolist()]["tokens"].combine_chunks()
        offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
        return pad([values[begin:end] for begin, end in pairwise(offsets)])

    return read


def hf_rows(folder: Path, form: str) -> Any:
    from datasets import load_from_disk

    return load_from_disk(str(folder)).with_format(form)


def pad(lists: Any) -> np.ndarray:
    """int32 rows of LENGTH, zero after the end."""
    batch = np.zeros((len(lists), LENGTH), np.int32)
    for row, values in zip(batch, lists, strict=True):
        row[: len(values)] = values
    return batch


def parquet(folder: Path) -> Read:
    """`pyarrow.dataset`, the one way that pyarrow has to take rows at random."""
    import pyarrow.dataset as ds

    rows = ds.dataset(sorted(map(str, folder.glob("*.parquet"))))

    def read(ids: np.ndarray) -> np.ndarray:
        # pyarrow takes rows in the order of the file.
        unique, inverse = np.unique(ids, return_inverse=True)
        taken = rows.take(unique, columns=["tokens"])["tokens"]
        return pad([row.values.to_numpy() for row in taken])[inverse]

    return read


def array_record(folder: Path) -> Read:
    rows = array_records(folder)
    return lambda ids: np.frombuffer(b"".join(rows.__getitems__(ids.tolist())), np.int32).reshape(-1, LENGTH)


def array_record_example(folder: Path) -> Read:
    rows = array_records(folder)
    return lambda ids: np.stack([parse_example(record) for record in rows.__getitems__(ids.tolist())])


def array_records(folder: Path) -> Any:
    """grain's source of ArrayRecord files."""
    from grain.sources import ArrayRecordDataSource

    return ArrayRecordDataSource(sorted(map(str, folder.glob("*.array_record"))))


def parse_example(record: bytes) -> np.ndarray:
    from tfrecord import example_pb2

    found = example_pb2.Example.FromString(record)
    return np.array(found.features.feature["tokens"].int64_list.value, np.int64)


def tfrecord_in_order(folder: Path) -> Read:
    """The package `tfrecord`, which reads files from their beginning and checks no checksums."""
    from tfrecord.reader import tfrecord_iterator

    return _in_order(folder, lambda path: (np.frombuffer(record, np.int32) for record in tfrecord_iterator(path)))


def tfrecord_example_in_order(folder: Path) -> Read:
    from tfrecord.reader import tfrecord_loader

    description = {"tokens": "int"}
    return _in_order(folder, lambda path: (row["tokens"] for row in tfrecord_loader(path, None, description)))


def _in_order(folder: Path, open_file: Callable[[str], Any]) -> Read:
    paths = sorted(map(str, folder.glob("*.tfrecord")))

    def endless() -> Any:
        while True:
            for path in paths:
                yield from open_file(path)

    rows = endless()
    return lambda ids: np.stack([next(rows) for _ in ids])


def webdataset(folder: Path) -> Read:
    row = webdataset_row(folder)
    return lambda ids: np.stack([row(record_id) for record_id in ids.tolist()])


def webdataset_row(folder: Path) -> Callable[[int], np.ndarray]:
    """wids, WebDataset's own random access; it needs a list of the shards with their numbers of samples."""
    from wids import ShardListDataset

    count = RECORDS // 8
    shards = [{"url": str(path), "nsamples": count} for path in sorted(folder.glob("*.tar"))]
    rows = ShardListDataset(shards, cache_dir=str(folder / "wids"), keep=True, transformations="PIL")
    return lambda record_id: rows[record_id][".npy"]


def mds(folder: Path) -> Read:
    import transformers  # noqa: F401  # before the stand-ins, which it would refuse

    # Its image data sets import torchvision, whose wheels on PyPI load beside PyTorch for CUDA alone. Arrays need none.
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = MagicMock(VisionDataset=type("VisionDataset", (), {}))
    from streaming import LocalDataset

    rows = LocalDataset(str(folder))
    return lambda ids: np.stack([rows[record_id]["tokens"] for record_id in ids.tolist()])


def hdf5(folder: Path) -> Read:
    """h5py takes ids that rise, each once."""
    import h5py

    rows = h5py.File(folder / "rows.h5")["tokens"]

    def read(ids: np.ndarray) -> np.ndarray:
        unique, inverse = np.unique(ids, return_inverse=True)
        return rows[unique][inverse]

    return read


def zarr(folder: Path) -> Read:
    import zarr as library

    rows: Any = library.open_array(folder / "tokens.zarr", mode="r")
    return lambda ids: rows.oindex[ids]


def zarr_tensorstore(folder: Path) -> Read:
    import tensorstore as ts

    store = {"driver": "file", "path": str(folder / "tokens.zarr")}
    rows = ts.open({"driver": "zarr3", "kvstore": store}, read=True).result()
    return lambda ids: rows[ids].read().result()
