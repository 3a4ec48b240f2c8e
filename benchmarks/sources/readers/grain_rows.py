"""grain's `MapDataset` over the format's own loader: `.source(…).batch(256)`, read batch by batch.

In favour of grain: its batches are taken by number in one thread, `dataset[i]`, without the threads and the queue of
its iterators, which cost more CPU time; and the records' order is looked up in a list, instead of shuffled.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np

from benchmarks.sources.contestant import BATCH, Read
from benchmarks.sources.readers import loaders
from benchmarks.sources.work import LENGTH


def tokens(folder: Path) -> Read:
    return _batches(loaders.token_window(folder))


def arrays(folder: Path) -> Read:
    rows = np.load(folder / "rows" / "tokens.npy", mmap_mode="r")
    return _batches(lambda record_id: rows[record_id])


def safetensors(folder: Path) -> Read:
    return _batches(loaders.safetensors_row(folder))


def megatron(folder: Path) -> Read:
    return _batches(loaders.megatron_window(folder))


def hf(folder: Path) -> Read:
    rows = loaders.hf_rows(folder, "numpy")
    return _batches(lambda record_id: _padded(rows[record_id]["tokens"]))


def array_record(folder: Path) -> Read:
    rows = loaders.array_records(folder)
    return _batches(lambda record_id: np.frombuffer(rows[record_id], np.int32), rows)


def array_record_example(folder: Path) -> Read:
    rows = loaders.array_records(folder)
    return _batches(lambda record_id: loaders.parse_example(rows[record_id]), rows, loaders.parse_example)


def webdataset(folder: Path) -> Read:
    return _batches(loaders.webdataset_row(folder))


def _padded(values: np.ndarray) -> np.ndarray:
    return np.pad(values, (0, LENGTH - len(values)))


class _Ordered:
    """The records that `ids` names, as a random-access source."""

    def __init__(self, row: Callable[[int], np.ndarray], rows: Any, parse: Callable[[bytes], np.ndarray]):
        self.ids: list[int] = [0] * BATCH
        self._row, self._rows, self._parse = row, rows, parse

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._row(self.ids[index])


class _OrderedTogether(_Ordered):
    """As well, with many records read together, as the source beneath can."""

    def __getitems__(self, indices: Any) -> list[np.ndarray]:
        return [self._parse(record) for record in self._rows.__getitems__([self.ids[index] for index in indices])]


def _batches(
    row: Callable[[int], np.ndarray],
    together: Any = None,
    parse: Callable[[bytes], np.ndarray] = lambda record: np.frombuffer(record, np.int32),
) -> Read:
    source = (_Ordered if together is None else _OrderedTogether)(row, together, parse)
    dataset = grain.MapDataset.source(source).batch(BATCH)

    def read(ids: np.ndarray) -> np.ndarray:
        source.ids = ids.tolist()
        return dataset[0]

    return read
