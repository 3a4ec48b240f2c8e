"""MosaicML's MDS data sets, written byte for byte by their documented layout."""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import MDSSource, MixDataSourcesConfig, MixDataSourcesNode, local_client
from mixserve.sources.fields import FieldSpec
from mixserve.sources.mds_index import parse_column
from mixserve.sources.mds_source import _array
from mixserve.sources.open_file import file_of
from mixserve.sources.source import is_array_backed
from mixserve_client.errors import SourceChanged
from tests.processes import ONE_SIZE
from tests.profiles import examples
from tests.records import taken

CODES = {
    "uint8": 8,
    "int8": 9,
    "uint16": 16,
    "int16": 17,
    "float16": 18,
    "uint32": 32,
    "int32": 33,
    "float32": 34,
    "uint64": 64,
    "int64": 65,
    "float64": 66,
}
SCALARS = {name: name for name in CODES} | {"int": "int64"}


def encode(encoding: str, value: Any) -> bytes:
    kind, _, rest = encoding.partition(":")
    if kind in SCALARS:
        return np.array(value, SCALARS[kind]).tobytes()
    if kind != "ndarray":
        return value if isinstance(value, bytes) else str(value).encode()
    array = np.asarray(value)
    head = b"" if rest else bytes([CODES[array.dtype.name]])
    if ":" not in rest:
        width = next(i for i in range(4) if max(array.shape) < 1 << (8 << i))
        head += bytes([array.ndim << 2 | width]) + np.array(array.shape, f"<u{1 << width}").tobytes()
    return head + array.tobytes()


def size_of(encoding: str) -> int | None:
    kind, *rest = encoding.split(":")
    if kind in SCALARS:
        return np.dtype(SCALARS[kind]).itemsize
    if kind == "ndarray" and len(rest) == 2:
        return np.dtype(rest[0]).itemsize * int(np.prod([int(axis) for axis in rest[1].split(",")]))
    return None


def write_mds(
    folder: Path, columns: Mapping[str, str], shards: Sequence[Sequence[Mapping[str, Any]]], **changes
) -> Path:
    folder.mkdir(exist_ok=True)
    names = sorted(columns)
    sizes = [size_of(columns[name]) for name in names]
    common = {
        "column_encodings": [columns[name] for name in names],
        "column_names": names,
        "column_sizes": sizes,
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": 1 << 26,
        "version": 2,
    }
    listed = []
    for number, samples in enumerate(shards):
        config = json.dumps(common, sort_keys=True).encode()
        encoded = []
        for sample in samples:
            parts = [encode(columns[name], sample[name]) for name in names]
            head = [len(part) for part, size in zip(parts, sizes, strict=True) if size is None]
            encoded.append(np.array(head, np.uint32).tobytes() + b"".join(parts))
        offsets = np.cumsum([4 * (len(samples) + 2) + len(config), *map(len, encoded)]).astype(np.uint32)
        content = np.uint32(len(samples)).tobytes() + offsets.tobytes() + config + b"".join(encoded)
        name = f"shard.{number:05}.mds"
        (folder / name).write_bytes(content)
        raw = {"basename": name, "bytes": len(content), "hashes": {}}
        listed.append({**common, "raw_data": raw, "samples": len(samples), "zip_data": None, **changes})
    (folder / "index.json").write_text(json.dumps({"shards": listed, "version": 2}))
    return folder


COLUMNS = {
    **{f"s_{name}": name for name in SCALARS},
    **{f"fixed_{name}": f"ndarray:{name}:2,3" for name in CODES},
    "any": "ndarray",
    "ids": "ndarray:uint16",
    "text": "str",
    "raw": "bytes",
    "image": "jpeg",
    "number": "str_int",
    "float": "str_float",
    "list": "json",
    "code": "pkl",
}
RNG = np.random.default_rng(0)


def sample(number: int) -> dict[str, Any]:
    return {
        **{f"s_{name}": number + 1 for name in SCALARS},
        **{f"fixed_{name}": RNG.integers(0, 99, (2, 3)).astype(name) for name in CODES},
        "any": RNG.integers(0, 99, (number + 1, 300)).astype(np.int32),
        "ids": RNG.integers(0, 99, number + 1).astype(np.uint16),
        "text": "é" * number,
        "raw": bytes([number]),
        "image": b"\xff\xd8" + bytes(number),
        "number": number - 3,
        "float": "nan" if number == 3 else number / 2,
        "list": json.dumps([number, 0]),
        "code": b"\x80\x04N.",
    }


SAMPLES = [sample(number) for number in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_mds(tmp_path_factory.mktemp("mds"), COLUMNS, [SAMPLES[:2], [], SAMPLES[2:]])


def test_every_encoding_is_read(folder):
    fields = [
        *(FieldSpec(name, name) for name in COLUMNS if name.startswith(("s_", "fixed_"))),
        FieldSpec("any", "any", None, 9, lengths="rows"),
        FieldSpec("ids", "ids", np.dtype(np.int32), 9, pad=-1),
        FieldSpec("text", "text", None, 16, lengths="bytes"),
        FieldSpec("raw", "raw"),
        FieldSpec("image", "image", None, 10),
        FieldSpec("number", "number", np.dtype(np.int8)),
        FieldSpec("float", "float", np.dtype(np.float32)),
        FieldSpec("list", "list"),
    ]
    source = MDSSource(folder, fields=fields)
    ids = [8, 0, 2, 1, 8, *range(9)]
    batch = taken(source, ids)
    for place, record_id in enumerate(ids):
        expected = SAMPLES[record_id]
        for name in SCALARS:
            assert batch[f"s_{name}"].dtype == SCALARS[name]
            assert batch[f"s_{name}"][place] == record_id + 1
        for name in CODES:
            assert batch[f"fixed_{name}"].dtype == name
            assert batch[f"fixed_{name}"][place].tobytes() == expected[f"fixed_{name}"].tobytes()
        assert batch["any"][place, : batch["rows"][place]].tobytes() == expected["any"].tobytes()
        assert batch["ids"][place].tolist() == [*expected["ids"].tolist(), *[-1] * (8 - record_id)]
        assert batch["text"][place, : batch["bytes"][place]].tobytes().decode() == expected["text"]
        assert batch["raw"][place].tobytes() == expected["raw"]
        assert batch["image"][place, : 2 + record_id].tobytes() == expected["image"]
        assert batch["number"][place] == expected["number"]
        np.testing.assert_equal(batch["float"][place], np.float32(expected["float"]))
        assert batch["list"][place].tolist() == [record_id, 0]
    assert source.locate(3).startswith(f"{folder}/shard.00002.mds, sample 1, byte ")
    source.prefetch(np.arange(9))
    again = pickle.loads(pickle.dumps(source))
    assert again.content_digest() == source.content_digest()
    twice = MDSSource([folder, folder], fields=fields)
    np.testing.assert_array_equal(taken(twice, [9, 17])["s_int"], [1, 9])
    assert twice.content_digest() != source.content_digest()


def test_even_samples_are_array_backed(folder, tmp_path):
    columns = {"label": "int", "flag": "uint8", "x": "ndarray:float32:2,3"}
    rows = [{"label": n, "flag": n, "x": RNG.random((2, 3), np.float32)} for n in range(9)]
    source = MDSSource(
        write_mds(tmp_path / "x", columns, [rows[:4], [], rows[4:]]),
        fields=[FieldSpec("x", "x", np.dtype(np.float64)), FieldSpec("label", "label")],
    )
    assert is_array_backed(source)
    assert not is_array_backed(MDSSource(folder))
    expected = {"x": [row["x"] for row in rows], "label": list(range(9))}
    for name, values in expected.items():
        found = [block[name] for block in source.blocks()]
        assert [len(block) for block in found] == [4, 5]
        assert np.shares_memory(found[0], source.blocks()[0][name])
        np.testing.assert_array_equal(np.concatenate(found), values)
        np.testing.assert_array_equal(taken(source, range(9))[name], values)
        file, byte = file_of(found[1]) or pytest.fail("no file")
        assert file.path.name == "shard.00002.mds"
        assert file.read(byte, found[1][0].nbytes) == found[1][0].tobytes()
    long = FieldSpec("x", "x", length=1, long="cut", lengths="n")
    for fields in ([long], [long, FieldSpec("label", "label")]):
        padded = MDSSource(tmp_path / "x", fields=fields)
        assert not is_array_backed(padded)
        node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE), [padded])
        assert node.get_batch_at(0, 2, jax.random.key(0))["x"].shape == (2, 1, 3)
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE), [source])
    with local_client({"m": node}) as client:
        batch = client.get_batch_at(0, 9, 0)
    for x, label in zip(batch["x"], batch["label"], strict=True):
        np.testing.assert_array_equal(x, rows[label]["x"])


@given(st.lists(st.integers(1, 400), min_size=1, max_size=3), st.sampled_from(sorted(CODES)), st.integers(0, 3))
@settings(max_examples=examples(40))
def test_arrays_of_any_shape(shape, dtype, wide):
    array = np.zeros(shape[:2], dtype)
    for encoding in ("ndarray", f"ndarray:{dtype}", f"ndarray:{dtype}:{','.join(map(str, array.shape))}"):
        data = encode(encoding, array)
        column = parse_column("x", encoding, size_of(encoding))
        found = _array(column, data)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        for wrong in (data[:-1], data + b"\0", b""):
            with pytest.raises(ValueError, match=r"has .* for an array|without a shape|unknown dtype"):
                _array(column, wrong)


def refusal(folder: Path, fields=None, ids=None) -> str:
    with pytest.raises(ValueError, match=r"(?s)..") as raised:
        source = MDSSource(folder, fields=fields)
        taken(source, range(len(source)) if ids is None else ids)
    return str(raised.value)


def test_pickles_and_unknown_encodings_are_not_served(folder, tmp_path):
    assert "could run any code" in refusal(folder, [FieldSpec("code", "code")])
    strange = write_mds(tmp_path / "x", {"a": "int", "b": "bytes"}, [[{"a": 1, "b": b""}]])
    index = (strange / "index.json").read_text()
    (strange / "index.json").write_text(index.replace('"bytes", ', '"x", ').replace(', "bytes"]', ', "novel"]'))
    assert taken(MDSSource(strange), [0])["a"].tolist() == [1]
    assert "its encoding 'novel' is not known" in refusal(strange, [FieldSpec("b", "b")])


def edited(folder: Path, edit) -> Path:
    index = json.loads((folder / "index.json").read_text())
    edit(index)
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda index: index.update(version=3), "has the version 3; only 2"),
        (lambda index: index.pop("shards"), "is not the index of an MDS data set: it has no 'shards'"),
        (lambda index: index.update(shards=[]), "lists no shards"),
        (lambda index: index["shards"][1].update(format="json"), "a shard of the format 'json'"),
        (lambda index: index["shards"][0].update(samples="3"), "lists a shard with '3' samples"),
        (lambda index: index["shards"][0]["raw_data"].update(basename="../x"), "which is not in its folder"),
        (lambda index: index["shards"][1].update(column_names=["b"]), "different columns"),
        (lambda index: index["shards"][0].update(column_sizes=[]), "do not belong together"),
        (lambda index: [shard.update(column_sizes=[4]) for shard in index["shards"]], "have 4 bytes; they have 8"),
        (lambda index: index["shards"][0]["raw_data"].update(bytes=7), r"and its index says 7: it is cut or another"),
        (lambda index: index["shards"][0].update(samples=1), "holds 2 samples, and its index says 1"),
        (lambda index: index["shards"][0].update(samples=1 << 40), "too few for 1,099,511,627,776 samples"),
        (lambda index: index.update(shards={}), "lists no shards"),
        (lambda index: index.update(shards=[1]), "is not the index"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path, edit, why):
    folder = edited(write_mds(tmp_path / "x", {"a": "int"}, [[{"a": 1}, {"a": 2}], [{"a": 3}]]), edit)
    said = refusal(folder)
    assert why in said
    assert str(folder) in said


@pytest.mark.parametrize(("shape", "size"), [("9" * 20, 16), ("4294967296,4294967296", 0)])
def test_a_shape_of_more_bytes_than_64_bits_count_is_refused(tmp_path, shape, size):
    folder = write_mds(tmp_path / "x", {"a": "ndarray:uint16:8"}, [[{"a": np.zeros(8, np.uint16)}]])
    wrong = {"column_encodings": [f"ndarray:uint16:{shape}"], "column_sizes": [size]}
    said = refusal(edited(folder, lambda index: [shard.update(wrong) for shard in index["shards"]]))
    assert said.startswith(str(folder / "index.json"))
    assert f"says that values of 'a' (ndarray:uint16:{shape}) have {size} bytes; they have" in said


def test_files_that_are_not_as_they_should_be(tmp_path):
    folder = write_mds(tmp_path / "x", {"a": "int", "b": "bytes"}, [[{"a": 1, "b": b"12"}, {"a": 2, "b": b""}]])
    shard = folder / "shard.00000.mds"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert refusal(folder).startswith(f"{shard} has {len(content) - 1} bytes, and its index says {len(content)}")
    shard.write_bytes(os.urandom(4) + content[4:])
    assert f"{shard} holds " in refusal(folder)
    shard.write_bytes(content[:8] + b"\xff" + content[9:])
    assert "its samples do not follow one another" in refusal(folder)
    begin = int(np.frombuffer(content[4:8], np.uint32)[0])
    shard.write_bytes(content[:begin] + b"\x09" + content[begin + 1 :])
    assert refusal(folder).startswith(f"{shard}, sample 0: it has 14 bytes, and its columns need others")
    shard.write_bytes(content)
    source = MDSSource(folder)
    os.truncate(shard, len(content) - 8)
    with pytest.raises(SourceChanged, match=f"{shard} has "):
        taken(source, [1])
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard\.00000\.mds"):
        MDSSource(folder)
    assert "zstd" in refusal(
        edited(
            folder,
            lambda index: index["shards"][0].update(compression="zstd", zip_data={"basename": "shard.00000.mds.zstd"}),
        )
    )
    (folder / "index.json").write_text("{")
    assert "index.json is not JSON" in refusal(folder)
    (folder / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        MDSSource(folder)


def test_folders_with_other_columns_are_refused(tmp_path):
    one = write_mds(tmp_path / "one", {"a": "int"}, [[{"a": 1}]])
    other = write_mds(tmp_path / "other", {"a": "int8"}, [[{"a": 1}]])
    with pytest.raises(ValueError, match=r"other and .*one have different columns"):
        MDSSource([one, other])
    assert refusal(write_mds(tmp_path / "none", {"a": "int"}, [[]])) == "the files have no records"


def test_a_field_may_have_a_slash_in_its_name(tmp_path):
    folder = write_mds(tmp_path / "a", {"x": "int"}, [[{"x": 7}] * 4])
    source = MDSSource(folder, fields=[FieldSpec("a/b", "x")])
    assert [list(block) for block in source.blocks()] == [["a~1b"]]
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE), [source])
    with local_client({"train": node}) as client:
        assert client.get_batch_at(0, 2, 3)["a/b"].tolist() == [7, 7]


@pytest.mark.parametrize(
    ("encoding", "value"), [("str_int", b"4_5"), ("str_float", b"4_5"), ("str_float", b"1e400"), ("str_int", b"x")]
)
def test_texts_that_are_no_numbers_are_refused(tmp_path, encoding, value):
    folder = write_mds(tmp_path / "x", {"a": encoding}, [[{"a": b"1"}, {"a": value}]])
    assert f"the field 'a' must be a number, got {value!r}" in refusal(folder)
    folder = write_mds(tmp_path / "y", {"a": "str_float"}, [[{"a": b" -inf "}, {"a": b"nan"}]])
    assert str(taken(MDSSource(folder), [0, 1])["a"].tolist()) == "[-inf, nan]"
