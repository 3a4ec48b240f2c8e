"""What is served of a stored field enters the digest of every kind of source, options that come later too."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixserve import FieldSpec, HfSource, MDSSource, ParquetSource, TFRecordSource, WebDatasetSource
from mixserve.sources.prepared import preparing_in
from tests.arrow_files import save_to_disk
from tests.records import tfrecord
from tests.test_mds import write_mds
from tests.test_webdataset import tar

BASE = FieldSpec("x", "a", length=3)
CHANGES: dict[str, Any] = {
    "name": "y",
    "source": "b",
    "dtype": np.dtype(np.float64),
    "length": 4,
    "pad": 7,
    "lengths": "n",
    "long": "cut",
    "default": (),
    "null": 5,
}
ROW = {"a": [1, 2], "b": [1, 2]}


def tfrecords(folder: Path) -> Callable[..., Any]:
    (folder / "x").write_bytes(tfrecord([json.dumps(ROW).encode()]))
    return lambda spec: TFRecordSource(folder / "x", record="json", fields=[spec])


def webdataset(folder: Path) -> Callable[..., Any]:
    data = json.dumps([1, 2]).encode()
    (folder / "x.tar").write_bytes(tar([("0.a.json", data), ("0.b.json", data)]))
    return lambda spec: WebDatasetSource(folder / "x.tar", fields=[replace(spec, source=f"{spec.source}.json")])


def mds(folder: Path) -> Callable[..., Any]:
    data = json.dumps([1, 2]).encode()
    write_mds(folder / "x", {"a": "json", "b": "json"}, [[{"a": data, "b": data}]])
    return lambda spec: MDSSource(folder / "x", fields=[spec])


def parquet(folder: Path) -> Callable[..., Any]:
    pq.write_table(pa.table({name: [row] for name, row in ROW.items()}), folder / "x.parquet")
    return lambda spec: ParquetSource(folder / "x.parquet", [spec])


def hf(folder: Path) -> Callable[..., Any]:
    save_to_disk(folder / "x", [[pa.record_batch({name: [row] for name, row in ROW.items()})]])
    return lambda spec: HfSource(folder / "x", [spec])


@pytest.mark.parametrize("kind", [tfrecords, webdataset, mds, parquet, hf])
def test_every_option_of_a_field_changes_the_digest(tmp_path, kind):
    assert set(CHANGES) == {field.name for field in fields(FieldSpec)}
    with preparing_in(tmp_path / "prepared"):
        make = kind(tmp_path)
        digests = [make(BASE).content_digest()]
        digests += [make(replace(BASE, **{name: value})).content_digest() for name, value in CHANGES.items()]
        assert make(BASE).content_digest() == digests[0]
    assert len(set(digests)) == len(digests)
