"""Files that another one is renamed over: while a source opens them, no source mixes the two, or the digest of one with
the records of the other; and a pickle does not open the other in place of the one."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore

from mixserve import (
    ArrayRecordSource,
    FieldSpec,
    MDSSource,
    MegatronSource,
    TFRecordSource,
    TokenSource,
    WebDatasetSource,
    ZarrSource,
)
from mixserve.sources.kinds.arrays import ArraysConfig
from mixserve.sources.parquet_files import ParquetFile
from mixserve.sources.prepared import preparing_in
from mixserve_client.errors import SourceChanged
from tests.records import tfrecord, write_array_record
from tests.test_mds import write_mds
from tests.test_megatron import write as write_megatron


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


TEXT = [FieldSpec("x", "data", length=2)]


def array_record(folder: Path, text: bytes) -> Any:
    return ArrayRecordSource(write_array_record(folder / "x", [text] * 3), record="bytes", fields=TEXT)


def tfrecords(folder: Path, text: bytes) -> Any:
    (folder / "x").write_bytes(tfrecord([text] * 3))
    return TFRecordSource(folder / "x", record="bytes", fields=TEXT)


def webdataset(folder: Path, text: bytes) -> Any:
    with tarfile.open(folder / "x.tar", "w") as tar:
        member = tarfile.TarInfo("0.txt")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
    return WebDatasetSource(folder / "x.tar", fields=[FieldSpec("x", "txt", length=2)])


def mds(folder: Path, text: bytes) -> Any:
    return MDSSource(write_mds(folder / "x", {"x": "bytes"}, [[{"x": text}]]), fields=[FieldSpec("x", "x", length=2)])


def megatron(folder: Path, text: bytes) -> Any:
    prefix = write_megatron(folder / "x", [np.frombuffer(text * 8, np.uint16)])
    return MegatronSource(prefix, sequence_length=2, order={"seed": 1}, segments=True, name="m")


def tokens(folder: Path, text: bytes) -> Any:
    (folder / "x.bin").write_bytes(text * 8)
    return TokenSource(folder / "x.bin", sequence_length=3, overlap=1, dtype=np.uint16, as_dtype="int32", field="ids")


@pytest.mark.parametrize("make", [array_record, tfrecords, webdataset, mds, megatron, tokens])
def test_a_pickle_has_the_paths_and_refuses_other_records(tmp_path, make):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with preparing_in(tmp_path / "prepared"):
        source = make(tmp_path / "a", b"aa")
        pickled = pickle.dumps(source)
        copy = pickle.loads(pickled)
        assert repr(copy) == repr(source)
        assert copy.content_digest() == source.content_digest()
        assert copy.name == source.name
        assert [file.path for file in copy.files()] == [file.path for file in source.files()]
        make(tmp_path / "b", b"bb")
    (tmp_path / "a").rename(tmp_path / "old")
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(ValueError, match=rf"{tmp_path}/a/x.* holds other records than when the source was pickled"):
        pickle.loads(pickled)
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "old").rename(tmp_path / "a")
    assert len(pickle.loads(pickled)) == len(source)


def test_pickles_of_token_files_do_not_have_the_tokens(tmp_path):
    np.zeros(100_000, np.uint16).tofile(tmp_path / "x.bin")
    assert len(pickle.dumps(TokenSource(tmp_path / "x.bin", sequence_length=8, dtype="uint16"))) < 2000
    prefix = write_megatron(tmp_path / "m", [np.zeros(100_000, np.uint16)])
    assert len(pickle.dumps(MegatronSource(prefix, sequence_length=8))) < 2000
    # Arrays have no paths, and neither has a source of both.
    for inputs in ([np.arange(10, dtype=np.uint16)], [np.arange(10, dtype=np.uint16), tmp_path / "x.bin"]):
        source = TokenSource(inputs, sequence_length=8, dtype="uint16")
        (tmp_path / "x.bin").rename(tmp_path / "away")
        assert pickle.loads(pickle.dumps(source)).content_digest() == source.content_digest()
        (tmp_path / "away").rename(tmp_path / "x.bin")
