"""Safetensors files under `kind: arrays`, and `fields:` of that kind. The files are written by the format's library."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mixserve import ArraySource, FieldSpec
from mixserve.build import open_nodes
from mixserve.cli.main import app
from mixserve.config import ConfigError, load_config
from mixserve.sources.kinds.arrays import ArraysConfig
from mixserve.sources.location import locate
from mixserve.sources.open_file import file_of
from mixserve.sources.safetensors import _DTYPES, map_safetensors
from mixserve_client.schema.dtypes import DTYPES
from tests.records import taken

ROWS = 40
NAMES = {name: code for code, name in _DTYPES.items()}


def raw_safetensors(path: Path, head: Any, data: bytes = b"") -> Path:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(kind: Any, shape: Any, first: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [first, stop]}


def opened(path: Path | str, folder: Path, **keys: Any) -> ArraySource:
    return ArraysConfig.model_validate({"kind": "arrays", "path": str(path), **keys}).open(folder)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_dtype_of_the_format_is_served_bit_by_bit(name, tmp_path):
    dtype = DTYPES[name]
    values = np.random.default_rng(0).integers(0, 2 if name == "bool" else 256, (ROWS, 3 * dtype.itemsize), np.uint8)
    array = values.view(dtype).reshape(ROWS, 3)
    data = array.tobytes()
    path = raw_safetensors(tmp_path / "a.safetensors", {"x": entry(NAMES[name], [ROWS, 3], 0, len(data))}, data)
    with safetensors.safe_open(path, "np") as known:  # the library takes the file, with the dtype of that name
        assert known.get_slice("x").get_dtype() == NAMES[name]
    source = opened(path, tmp_path)
    assert source.element_spec()["x"].dtype == dtype
    assert taken(source, [7, 0, 7])["x"].tobytes() == array[[7, 0, 7]].tobytes()


@given(
    rows=st.integers(1, 20),
    shapes=st.lists(
        st.tuples(st.sampled_from(["int8", "float32", "uint16", "float64"]), st.integers(0, 5)), min_size=1
    ),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2),
)
def test_files_are_read_as_the_library_reads_them(rows, shapes, metadata, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    rng = np.random.default_rng(len(shapes))
    arrays = {f"t{i}": rng.integers(0, 99, (rows, width)).astype(name) for i, (name, width) in enumerate(shapes)}
    save_file(arrays, path, metadata)
    found, known = map_safetensors(path), load_file(path)
    assert found.keys() == known.keys()
    for name, array in known.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_records_are_rows_of_the_mapped_file_and_say_where_they_lie(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"x": np.arange(2 * ROWS, dtype=np.int64).reshape(ROWS, 2), "y": np.arange(ROWS, dtype=np.uint8)}
    save_file(arrays, path)
    source = opened("*.safetensors", tmp_path)
    (block,) = source.blocks()
    for name, array in arrays.items():
        np.testing.assert_array_equal(taken(source, [3, 39, 0])[name], array[[3, 39, 0]])
        file, offset = file_of(block[name]) or pytest.fail("not mapped")
        assert (file.path, path.read_bytes()[offset : offset + array.nbytes]) == (path, array.tobytes())
    assert str(path) in locate(source, 3)
    assert source.content_digest() == ArraySource(arrays).content_digest()


X = entry("I32", [4], 0, 16)
WRONG: dict[str, tuple[bytes | dict[str, Any], bytes, str]] = {
    "not in order": ({"x": X, "y": entry("I32", [4], 8, 24)}, bytes(24), "should begin at 16"),
    "a hole": ({"x": X, "y": entry("I32", [4], 20, 36)}, bytes(36), "should begin at 16"),
    "cut data": ({"x": X}, bytes(12), "end at 12 or before: the file is cut"),
    "more data": ({"x": X}, bytes(17), "it has 1 bytes after its last tensor"),
    "other size": ({"x": entry("I32", [3], 0, 16)}, bytes(16), "needs 12 bytes, and has 16"),
    "backwards": ({"x": entry("I32", [4], 16, 0)}, bytes(16), "should begin at 0"),
    "unknown dtype": ({"x": entry("F4", [4], 0, 2)}, bytes(2), "the tensor 'x' is 'F4', which cannot be served"),
    "dtype of no name": ({"x": entry(["I32"], [4], 0, 16)}, bytes(16), "the tensor 'x' has the wrong entry"),
    "negative": ({"x": entry("I32", [-4], 0, 16)}, bytes(16), "the tensor 'x' has the wrong entry"),
    "huge": ({"x": entry("I32", [1 << 60], 0, 16)}, bytes(16), "needs 4,611,686,018,427,387,904 bytes"),
    "no entry": ({"x": 5}, b"", "the tensor 'x' has the wrong entry 5"),
    "a list": (b"[]", b"", "its head must be an object, got []"),
    "no tensors": ({"__metadata__": {"a": "b"}}, b"", "it holds no tensors"),
    "no json": (b'{"x"', b"", "cannot be read as safetensors"),
    "no text": (b"\xff\xfe", b"", "cannot be read as safetensors"),
    "twice": (b'{"x": 1, "x": 2}', b"", "its head has a key twice"),
    "deep": (b"[" * 100_000, b"", "its head is nested too deeply"),
}


@pytest.mark.parametrize("what", WRONG)
def test_damaged_files_are_refused_by_name(what, tmp_path):
    head, data, said = WRONG[what]
    path = raw_safetensors(tmp_path / "a.safetensors", head, data)
    with pytest.raises(ValueError, match="cannot be read as safetensors") as raised:
        opened(path, tmp_path)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"123", "it has only 3 bytes"),
        (b"PK\3\4" + bytes(100), "its head would have"),
        (struct.pack("<Q", 1 << 63) + b"{}", "its head would have 9,223,372,036,854,775,808 bytes"),
    ],
)
def test_empty_and_foreign_files_are_refused(content, said, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as safetensors") as raised:
        opened("a.safetensors", tmp_path)
    assert said in str(raised.value)
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        opened("a.safetensors", tmp_path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """The same arrays in all ways that `kind: arrays` reads, and with them one that is no field of records."""
    arrays = {
        "x": np.arange(3 * ROWS, dtype=np.uint16).reshape(ROWS, 3),
        "a/b": np.arange(ROWS, dtype=np.float32),
        "vocabulary": np.array([1, 2], np.int64),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    save_file(arrays, tmp_path / "a.safetensors")
    (tmp_path / "npy").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "npy" / f"{name.replace('a/b', 'ab')}.npy", array)
    return tmp_path


@pytest.mark.parametrize(("path", "b"), [("a.npz", "a/b"), ("a.safetensors", "a/b"), ("npy", "ab")])
def test_fields_select_rename_and_widen(path, b, folder):
    source = opened(path, folder, fields={"tokens": {"from": "x", "as": "int32"}, "c/d": b})
    assert list(source.element_spec()) == ["tokens", "c/d"]
    found = taken(source, [5, 1])
    assert found["tokens"].dtype == np.int32
    np.testing.assert_array_equal(found["tokens"], np.arange(3 * ROWS).reshape(ROWS, 3)[[5, 1]])
    np.testing.assert_array_equal(found["c/d"], np.array([5, 1], np.float32))
    with pytest.raises(ValueError, match=f"fields: .* has the fields {b}, vocabulary, x, not nothing"):
        opened(path, folder, fields={"x": "nothing"})
    with pytest.raises(ValueError, match="must have one leading length"):
        opened(path, folder)


def test_the_digest_is_that_of_what_is_served(folder):
    def digest(**keys):
        return opened("a.npz", folder, fields=keys).content_digest()

    plain = ArraySource({"x": np.arange(3 * ROWS, dtype=np.uint16).reshape(ROWS, 3)})
    assert digest(x="x") == plain.content_digest()
    assert digest(x={"from": "x", "as": "uint16"}) == plain.content_digest()
    others = [
        digest(x="x"),
        digest(y="x"),
        digest(x={"from": "x", "as": "int32"}),
        digest(x={"from": "x", "as": "int64"}),
    ]
    assert len(set(others)) == 4


def test_what_is_not_selected_need_not_be_servable(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3), text=np.array(["a", "b", "c"]))
    assert len(opened("a.npz", tmp_path, fields={"x": "x"})) == 3
    raw_safetensors(tmp_path / "a.safetensors", {"x": X, "y": entry("F4", [2], 16, 17)}, bytes(17))
    assert len(opened("a.safetensors", tmp_path, fields={"x": "x"})) == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("{x: {from: x, as: int8}}", "fields.x: values of uint16 do not all fit into as: int8"),
        ("{x: {from: x, as: integer}}", "fields.x.as: 'integer' is not a dtype such as int32"),
        ("{x: {from: x, length: 8}}", "fields.x.length: unknown key; allowed here are from, as\n"),
        ("{}", "should have at least 1 item"),
    ],
)
def test_wrong_fields_are_refused_by_their_key(fields, said, folder):
    path = folder / "mixture.yaml"
    path.write_text(f"mixtures: {{m: {{sources: {{a: {{kind: arrays, path: a.npz, fields: {fields}, weight: 1}}}}}}}}")
    with pytest.raises(ConfigError) as raised:
        load_config(path)
        open_nodes(path)
    assert said in f"{raised.value}\n"


def test_fields_of_array_sources_in_python():
    arrays = {"x": np.zeros(3, np.int8), "y": np.ones(3, np.int8), "z": np.zeros(7)}
    source = ArraySource(arrays, arrays, fields=[FieldSpec("y", "y", np.dtype("int64")), FieldSpec("w", "y")])
    assert (len(source), taken(source, [5])["y"].dtype, taken(source, [5])["w"].dtype) == (6, np.int64, np.int8)
    for fields, said in (
        ([], "name at least one"),
        ([FieldSpec("a", "x"), FieldSpec("a", "y")], "a would be served twice"),
        ([FieldSpec("a", "b")], "fields.a: no field 'b' is stored; there are x, y, z"),
        ([FieldSpec("a", "x", length=3)], "length is for ragged fields"),
    ):
        with pytest.raises(ValueError, match="fields") as raised:
            ArraySource(arrays, fields=fields)
        assert said in str(raised.value)
    with pytest.raises(TypeError, match="fields of an ArraySource need dicts of arrays"):
        ArraySource(np.zeros(3), fields=[FieldSpec("a", "b")])


def test_a_configuration_is_checked(tmp_path, capsys):
    data = np.zeros((ROWS, 2), ml_dtypes.bfloat16).tobytes()
    raw_safetensors(tmp_path / "a.safetensors", {"x": entry("BF16", [ROWS, 2], 0, len(data))}, data)
    path = tmp_path / "mixture.yaml"
    path.write_text(
        "mixtures: {m: {sources: {a: {kind: arrays, path: a.safetensors, "
        "fields: {tokens: {from: x, as: float32}}, weight: 1}}}}"
    )
    app(["check", str(path)], standalone_mode=False)
    assert "tokens" in capsys.readouterr().out
