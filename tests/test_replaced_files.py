"""Files that another one is renamed over while a source opens them: no source mixes the two, or the digest of one with
the records of the other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore

from mixserve import ZarrSource
from mixserve.sources.kinds.arrays import ArraysConfig
from mixserve.sources.parquet_files import ParquetFile
from mixserve_client.errors import SourceChanged


def after(replace: Callable[[], Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, before which `replace` is called once."""
    waiting = [replace]

    def both(*args: Any, **kwargs: Any) -> Any:
        while waiting:
            waiting.pop()()
        return call(*args, **kwargs)

    return both


def test_parquet_is_read_from_the_file_that_was_opened(tmp_path):
    path, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(pa.table({"x": np.zeros(10, np.int32)}), path)
    pq.write_table(pa.table({"x": np.ones(10, np.int32)}), other)
    file = ParquetFile(path)
    other.rename(path)
    assert [batch["x"].to_pylist() for batch in file.batches(["x"])] == [[0] * 10]
    assert [batch["x"].to_pylist() for batch in ParquetFile(path).batches(["x"])] == [[1] * 10]


def test_parquet_that_is_cut_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": np.arange(1 << 20)}), path, compression="none", use_dictionary=False)
    batches = ParquetFile(path).batches(["x"])
    assert next(batches).num_rows
    with path.open("r+b") as file:
        file.truncate(4 << 20)
    with pytest.raises(SourceChanged, match=f"{path} has 4,194,304 bytes now"):
        list(batches)


def test_an_npy_file_that_is_replaced_between_header_and_map_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "part"
    folder.mkdir()
    np.save(folder / "x.npy", np.zeros(4, np.int32))
    np.save(tmp_path / "other.npy", np.ones(4, np.float32))
    config = ArraysConfig(kind="arrays", path="part", weight=1)
    opened = after(lambda: (tmp_path / "other.npy").rename(folder / "x.npy"), np.memmap)
    late = type("memmap", (np.memmap,), {"__new__": lambda _, *args, **kwargs: opened(*args, **kwargs)})
    with monkeypatch.context() as patch, pytest.raises(SourceChanged, match=r"x\.npy was replaced while it was opened"):
        patch.setattr(np, "memmap", late)
        config.open(tmp_path)
    assert config.open(tmp_path).take(np.arange(4))["x"].tolist() == [1] * 4


def test_zarr_metadata_that_are_replaced_while_they_are_opened_are_refused(tmp_path, monkeypatch):
    for name, rows in (("a", 4), ("b", 3)):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path / name}/"}}
        metadata = {"shape": [rows], "data_type": "int32", "fill_value": 0}
        tensorstore.open(spec | {"metadata": metadata}, create=True).result()[...] = 1
    opened = after(lambda: (tmp_path / "b" / "zarr.json").rename(tmp_path / "a" / "zarr.json"), tensorstore.open)
    with monkeypatch.context() as patch, pytest.raises(SourceChanged, match=r"zarr\.json was replaced while it was op"):
        patch.setattr(tensorstore, "open", opened)
        ZarrSource({"x": tmp_path / "a"})
    assert len(ZarrSource({"x": tmp_path / "a"})) == 3
