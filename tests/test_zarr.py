"""Zarr arrays of both versions, written by tensorstore, and read record by record as tensorstore reads them."""

import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import FieldSpec, ZarrSource
from mixserve.cli.main import app
from mixserve.error_boundary import WrongRecord
from mixserve.sources.location import locate
from mixserve.sources.source import is_array_backed
from mixserve_client.errors import InvalidRequest, SourceChanged
from mixserve_client.schema.dtypes import DTYPES
from tests.profiles import examples
from tests.records import taken

ROWS = 50
RNG = np.random.default_rng(0)
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 1}}
SHARDS = {
    "name": "sharding_indexed",
    "configuration": {"chunk_shape": [5, 3], "codecs": [LITTLE, ZSTD], "index_codecs": [LITTLE, {"name": "crc32c"}]},
}
V3: dict[str, Any] = {"codecs": [LITTLE]}
LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": {"version": 2, "compressor": None},
    "v2 blosc": {"version": 2, "order": "F", "dimension_separator": "/"},
    "v3": V3,
    "v3 zstd": {"codecs": [LITTLE, ZSTD]},
    "v3 sharded": {"codecs": [SHARDS], "chunks": (20, 3)},
}
V2_NAMES = [*("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"), "bfloat16"]
V2_NAMES += ["float16", "float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"]


def write(
    path: Path, array: np.ndarray, *, version: int = 3, chunks: tuple[int, ...] | None = None, **metadata: Any
) -> Path:
    chunks = chunks or (min(7, len(array)), *array.shape[1:])
    name = array.dtype.name
    if version == 2:
        known = name if name.startswith(("bfloat", "float8")) else array.dtype.str
        spec = {"shape": array.shape, "chunks": chunks, "dtype": known, **metadata}
    else:
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        spec = {"shape": array.shape, "chunk_grid": grid, "data_type": name, **metadata}
    store = tensorstore.open(
        {
            "driver": "zarr3" if version == 3 else "zarr",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "metadata": spec,
            "store_data_equal_to_fill_value": True,
        },
        create=True,
        delete_existing=True,
    ).result()
    store[...] = array
    return path


def group(path: Path, version: int = 3) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if version == 3:
        (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    else:
        (path / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    return path


@pytest.fixture(params=LAYOUTS)
def layout(request) -> dict[str, Any]:
    return LAYOUTS[request.param]


def test_every_dtype_and_layout_is_served_bit_by_bit(layout, tmp_path):
    arrays = {}
    for name in V2_NAMES:
        values = RNG.integers(0, 2, (ROWS, 3 * DTYPES[name].itemsize), np.uint8)
        arrays[name] = values.view(DTYPES[name]).reshape(ROWS, 3)
        write(tmp_path / name, arrays[name], **layout)
    source = ZarrSource({f"f/{name}": tmp_path / name for name in arrays})
    assert (len(source), is_array_backed(source)) == (ROWS, False)
    ids = [49, 0, 7, 7, 13, 0]
    found = taken(source, ids)
    for name, array in arrays.items():
        assert found[f"f/{name}"].dtype == array.dtype
        assert found[f"f/{name}"].tobytes() == array[ids].tobytes()


def test_big_endian_arrays_are_converted(tmp_path):
    array = np.arange(12, dtype=">i4").reshape(6, 2)
    write(tmp_path / "a", array, version=2, compressor=None)
    assert taken(ZarrSource({"x": tmp_path / "a"}), [5])["x"].tolist() == [[10, 11]]


@settings(max_examples=examples(20))
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    chunk=st.tuples(st.integers(1, 4), st.integers(1, 2)),
    picks=st.lists(st.floats(0, 0.999), max_size=20),
    version=st.sampled_from([2, 3]),
)
def test_any_records_of_any_groups(counts, chunk, picks, version, tmp_path_factory):
    folder, total = tmp_path_factory.mktemp("any"), sum(counts)
    whole = np.arange(2 * total, dtype=np.uint16).reshape(total, 2)
    ends = np.cumsum(counts)
    for number, (count, end) in enumerate(zip(counts, ends, strict=True)):
        group(folder / f"{number}", version)
        write(folder / f"{number}/x", whole[end - count : end], version=version, chunks=chunk)
    paths = [folder / f"{number}" for number in range(len(counts))]
    source = ZarrSource(paths, fields=[FieldSpec("a", "x", np.dtype("int64"))])
    ids = [int(pick * total) for pick in picks]
    np.testing.assert_array_equal(taken(source, ids)["a"], whole[np.array(ids, int)])
    assert locate(source, total - 1) == f"{paths[-1]}, row {counts[-1] - 1}"


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_of_a_group_are_fields_by_their_paths(version, tmp_path):
    group(group(tmp_path / "g", version) / "images", version)
    write(tmp_path / "g/images/train", np.arange(8.0).reshape(4, 2), version=version)
    write(tmp_path / "g/labels", np.arange(4), version=version)
    (tmp_path / "g/notes").mkdir()
    source = ZarrSource(tmp_path / "g")
    assert sorted(source.element_spec()) == ["images/train", "labels"]
    write(tmp_path / "g/other", np.zeros(3), version=version)
    with pytest.raises(ValueError, match=r"g: the served arrays have different numbers of rows"):
        ZarrSource(tmp_path / "g")
    assert len(ZarrSource(tmp_path / "g", fields=[FieldSpec("x", "other")])) == 3
    with pytest.raises(
        ValueError, match=r"fields.x: no field 'images' is stored; there are images/train, labels, other"
    ):
        ZarrSource(tmp_path / "g", fields=[FieldSpec("x", "images")])
    with pytest.raises(ValueError, match=r"labels is one array; give its field a name, such as path: {x: labels}"):
        ZarrSource(tmp_path / "g/labels")
    with pytest.raises(ValueError, match=r"g is not a Zarr array"):
        ZarrSource({"x": tmp_path / "g"})


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


CHUNKS = {2: "3.0", 3: "c/3/0"}


@pytest.mark.parametrize("version", CHUNKS)
@pytest.mark.parametrize(
    ("change", "said"),
    [(Path.unlink, "is missing; if its writer leaves out"), (empty, "Error reading"), (cut, "Error reading")],
)
def test_a_chunk_that_is_missing_or_damaged_is_an_error_that_names_its_file(version, change, said, tmp_path):
    """By default the libraries give zeros for a chunk whose file is gone."""
    array = np.arange(1, 101).reshape(ROWS, 2)
    write(tmp_path / "a", array, version=version, **({"compressor": None} if version == 2 else V3))
    source = ZarrSource({"x": tmp_path / "a"})
    chunk = tmp_path / "a" / CHUNKS[version]
    change(chunk)
    np.testing.assert_array_equal(taken(source, [20, 28])["x"], array[[20, 28]])
    with pytest.raises(WrongRecord, match=r"the field 'x' of the record 22 cannot be read") as raised:
        taken(source, [20, 22, 28])
    assert str(chunk) in str(raised.value)
    assert said in str(raised.value)
    assert str(raised.value).endswith("a, row 22")
    with pytest.raises(OSError, match=str(chunk)):
        ZarrSource({"x": tmp_path / "a"}).content_digest()
    if change is Path.unlink:
        filled = ZarrSource({"x": tmp_path / "a"}, missing="fill")
        assert taken(filled, [20, 22])["x"].tolist() == [[41, 42], [0, 0]]
    for wrong in (-1, ROWS):
        with pytest.raises(IndexError, match=r"record ids must be in 0\.\.49"):
            taken(source, [0, wrong])


def garble(path: Path) -> None:
    path.write_bytes(b"\xff{" + path.read_bytes())


METADATA: dict[str, tuple[int, Callable[[Path], Any], str]] = {
    "v3 empty": (3, empty, "zarr.json is damaged"),
    "v3 garbled": (3, garble, "zarr.json is damaged"),
    "v3 cut": (3, cut, "zarr.json is damaged"),
    "v3 no node": (3, lambda path: path.write_text('{"node_type": 3}'), "its node_type is 3"),
    "v3 lacking": (3, lambda path: path.write_text('{"node_type": "array", "zarr_format": 3}'), "zarr.json"),
    "v3 gone": (3, Path.unlink, "is not a Zarr array: it has neither"),
    "v2 empty": (2, empty, ".zarray"),
    "v2 garbled": (2, garble, ".zarray"),
    "v2 cut": (2, cut, ".zarray"),
    "v2 gone": (2, Path.unlink, "is not a Zarr array: it has neither"),
}


@pytest.mark.parametrize("what", METADATA)
def test_damaged_metadata_are_refused_by_name(what, tmp_path):
    version, change, said = METADATA[what]
    path = write(tmp_path / "a", np.zeros((4, 2)), version=version)
    change(path / (".zarray" if version == 2 else "zarr.json"))
    with pytest.raises(ValueError, match=str(path)) as raised:
        ZarrSource({"x": path})
    assert said in str(raised.value)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"dtype": "<U4"}, "<U4"),
    "bytes": ({"dtype": "|S4"}, "dtype must be one of"),
    "structure": ({"dtype": [["a", "<i4"], ["b", "<f4"]]}, "field"),
    "time": ({"dtype": "<M8[s]"}, "M8"),
    "objects": ({"dtype": "|O"}, "|O"),
    "int4": ({"dtype": "int4"}, "int4"),
    "single number": ({"shape": [], "chunks": []}, "it is a single number, without rows"),
    "no rows": ({"shape": [0, 2]}, "holds no records"),
    "unknown compressor": ({"compressor": {"id": "secret"}}, "secret"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused(what, tmp_path):
    changes, said = REFUSED[what]
    path = write(tmp_path / "a", np.zeros((4, 2)), version=2)
    known = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps(known | changes))
    for fields in (None, [FieldSpec("y", "x")]):
        with pytest.raises(ValueError, match=str(path)) as raised:
            ZarrSource({"x": path}, fields=fields)
        assert said in str(raised.value)


def test_paths_must_be_folders_of_zarr(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    for path, said in ((tmp_path / "a.zip", "it is a file; unpack it"), (tmp_path / "b", "it does not exist")):
        with pytest.raises(ValueError, match=said):
            ZarrSource(path)
        with pytest.raises(ValueError, match=said):
            ZarrSource({"x": path})
    with pytest.raises(ValueError, match="holds no arrays"):
        ZarrSource(group(tmp_path / "g"))
    (tmp_path / "g/again").symlink_to(tmp_path / "g")
    with pytest.raises(ValueError, match="is there a link to a group above it"):
        ZarrSource(tmp_path / "g")
    with pytest.raises(ValueError, match="at least one"):
        ZarrSource({})
    with pytest.raises(ValueError, match="missing: must be refuse or fill, got 'zero'"):
        ZarrSource(tmp_path / "g", missing="zero")


def test_changed_metadata_are_noticed(layout, tmp_path):
    path = write(tmp_path / "a", np.zeros((ROWS, 3)), **layout)
    (file,) = ZarrSource({"x": path}).files()
    file.check_unchanged()
    cut(file.path)
    with pytest.raises(SourceChanged, match=r"bytes now"):
        file.check_unchanged()


def test_the_digest_is_of_values_and_of_what_is_served(tmp_path):
    array = RNG.integers(0, 99, (ROWS, 3))
    digests = set()
    for number, metadata in enumerate(LAYOUTS.values()):
        write(tmp_path / f"{number}", array, **metadata)
        digests.add(ZarrSource({"x": tmp_path / f"{number}"}).content_digest())
    assert len(digests) == 1
    path = tmp_path / "0"
    digests.add(ZarrSource({"y": path}).content_digest())
    digests.add(ZarrSource({"x": path}, fields=[FieldSpec("x", "x", np.dtype("float64"))]).content_digest())
    array[-1, -1] += 1
    digests.add(ZarrSource({"x": write(path, array, **LAYOUTS["v3"])}).content_digest())
    assert len(digests) == 4


def test_the_digest_of_a_large_array_reads_pieces(tmp_path):
    path = write(tmp_path / "a", np.ones((1100, 1 << 14), np.float32), chunks=(1, 1 << 14), codecs=[LITTLE, ZSTD])
    source = ZarrSource({"x": path})
    whole = source.content_digest()
    (path / "c/1/0").unlink()
    assert source.content_digest() == whole
    (path / "c/1099/0").unlink()
    with pytest.raises(OSError, match="c/1099/0"):
        source.content_digest()


def test_pickles_open_the_same_arrays_or_say_no(tmp_path):
    path = write(tmp_path / "a", np.arange(ROWS))
    pickled = pickle.dumps(ZarrSource({"x": path}, name="web"))
    again = pickle.loads(pickled)
    assert (again.name, taken(again, [7])["x"].tolist()) == ("web", [7])
    shutil.rmtree(path)
    write(path, np.arange(ROWS) + 1)
    with pytest.raises(ValueError, match="holds other records than when the source was pickled"):
        pickle.loads(pickled)


def test_threads_read_the_right_records(tmp_path):
    array = np.arange(4000 * 8, dtype=np.int32).reshape(4000, 8)
    paths = {name: write(tmp_path / name, array, chunks=(100, 8), codecs=[LITTLE, ZSTD]) for name in "xy"}
    source, wrong = ZarrSource(paths), list[Any]()

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            ids = rng.integers(0, 4000, 32)
            found = source.take(ids)
            if not all(np.array_equal(found[name], array[ids]) for name in paths):
                wrong.append(ids)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_forked_process_gets_an_error_and_lives(tmp_path):
    """tensorstore would abort it, also if it opened the array again."""
    path = write(tmp_path / "a", np.arange(ROWS))
    source = ZarrSource({"x": path})
    for use in (lambda: taken(source, [3]), lambda: ZarrSource({"x": path})):
        child = os.fork()
        if child == 0:
            try:
                use()
            except InvalidRequest as error:
                os._exit(0 if "spawn" in str(error) else 2)
            except BaseException:
                os._exit(3)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    assert taken(source, [3])["x"].tolist() == [3]


def test_a_configuration_is_checked(tmp_path, capsys):
    for name in ("x", "y"):
        write(tmp_path / f"{name}.zarr", np.arange(8))
    for part in range(2):
        write(group(tmp_path / f"part-{part}.zarr") / "images", np.zeros((4, 2)))
    path = tmp_path / "mixture.yaml"
    path.write_text(
        "mixtures:\n"
        "  a: {sources: {a: {kind: zarr, path: {x: x.zarr, y: y.zarr}, weight: 1}}}\n"
        '  b: {sources: {b: {kind: zarr, path: "part-*.zarr", fields: {x: images}, missing: fill, weight: 1}}}\n'
    )
    app(["check", str(path)], standalone_mode=False)
    assert "float64" in capsys.readouterr().out
    path.write_text(path.read_text().replace("x: x.zarr", 'x: "*.zarr"'))
    with pytest.raises(SystemExit):
        app(["check", str(path)])
    assert "path.x: must be the folder of one array, and 4 folders match" in " ".join(capsys.readouterr().err.split())
