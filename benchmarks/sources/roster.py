"""Which kinds are read, by whom, and in which environment."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.environments import python_of

OURS = "mixserve"
GRAIN = "grain"


@dataclass(frozen=True)
class Entry:
    """One way to read a kind: `reader` is MODULE:FUNCTION of `benchmarks.sources.readers`.

    `environment` is a folder of .venv-peers, None for the benchmark's own. With `in_order`, records come in the files'
    order, since this loader has no random access: its batches are others.
    """

    name: str
    reader: str
    environment: str | None = "loaders"
    in_order: bool = False

    def python(self) -> Path:
        """The interpreter to run it with. Raises FileNotFoundError if its environment has not been built."""
        return python_of(self.environment)


@dataclass(frozen=True)
class Kind:
    """Data of one format, and those who read it; the first is ours. `least_grain` is a target: ours by grain."""

    name: str
    data: str
    entries: tuple[Entry, ...]
    least_grain: float | None = None


def _kind(
    name: str, function: str, *loaders: Entry, data: str = "", grain: bool = False, least_grain: float | None = None
) -> Kind:
    entries = [Entry(OURS, f"ours:{function}", None), *loaders]
    if grain:
        entries.append(Entry(GRAIN, f"grain_rows:{function}"))
    return Kind(name, data or function, tuple(entries), least_grain)


def _loader(name: str, function: str, *, in_order: bool = False, environment: str = "loaders") -> Entry:
    return Entry(name, f"loaders:{function}", environment, in_order)


KINDS = (
    _kind("tokens", "tokens", _loader("slices of maps", "tokens"), grain=True, least_grain=5),
    _kind("arrays, .npy", "arrays", _loader("np.load, mapped", "arrays"), grain=True, least_grain=5),
    _kind("arrays, safetensors", "safetensors", _loader("safetensors", "safetensors"), grain=True, least_grain=5),
    _kind("megatron, stored order", "megatron", _loader("IndexedDataset", "megatron"), grain=True, least_grain=5),
    _kind(
        "megatron, its shuffled documents",
        "megatron_shuffled",
        _loader("GPTDataset", "megatron_shuffled"),
        data="megatron",
    ),
    _kind(
        "hf, ragged",
        "hf",
        _loader("datasets, numpy", "hf_numpy"),
        _loader("datasets, arrow", "hf_arrow"),
        grain=True,
        least_grain=5,
    ),
    _kind("parquet, ragged", "parquet", _loader("pyarrow.dataset", "parquet")),
    _kind("array_record, bytes", "array_record", _loader("ArrayRecordDataSource", "array_record"), grain=True),
    _kind(
        "array_record, Examples",
        "array_record_example",
        _loader("ArrayRecordDataSource", "array_record_example"),
        grain=True,
    ),
    _kind("tfrecord, bytes", "tfrecord", _loader("tfrecord, in order", "tfrecord_in_order", in_order=True)),
    _kind(
        "tfrecord, Examples",
        "tfrecord_example",
        _loader("tfrecord, in order", "tfrecord_example_in_order", in_order=True),
    ),
    _kind("webdataset, .npy", "webdataset", _loader("wids", "webdataset"), grain=True),
    _kind("mds, fixed arrays", "mds", _loader("LocalDataset", "mds", environment="mosaicml")),
    _kind("mds, any arrays", "mds", _loader("LocalDataset", "mds", environment="mosaicml"), data="mds_shapes"),
    _kind("hdf5, contiguous", "hdf5", _loader("h5py", "hdf5")),
    _kind("hdf5, gzip chunks of 64", "hdf5", _loader("h5py", "hdf5"), data="hdf5_gzip"),
    _kind("zarr, chunks of 16", "zarr", _loader("tensorstore", "zarr_tensorstore"), _loader("zarr-python", "zarr")),
)
