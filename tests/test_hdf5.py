"""HDF5 files, written by h5py, and read record by record as h5py reads them."""

import os
import pickle
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import FieldSpec, Hdf5Source
from mixserve.cli.main import app
from mixserve.error_boundary import WrongRecord
from mixserve.sources.location import locate
from mixserve.sources.open_file import file_of
from mixserve.sources.source import is_array_backed
from mixserve_client.errors import SourceChanged
from tests.profiles import examples
from tests.records import taken

ROWS = 50
RNG = np.random.default_rng(0)
NAMES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
]
ARRAYS = {name: RNG.integers(0, 2 if name == "bool" else 100, (ROWS, 3)).astype(name) for name in NAMES}
SPECS = {name: FieldSpec(name, f"{name}/values") for name in NAMES}


def write(path: Path, arrays: dict[str, np.ndarray], mode: str = "w", **options: Any) -> Path:
    with h5py.File(path, mode, userblock_size=options.pop("userblock_size", None)) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "after a user block": {"userblock_size": 512},
    "chunks": {"chunks": (7, 2)},
    "gzip": {"chunks": (7, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
}


@pytest.fixture(params=LAYOUTS)
def layout(request) -> str:
    return request.param


def test_every_dtype_and_layout_is_served_bit_by_bit(layout, tmp_path):
    path = write(tmp_path / "a.h5", {f"{name}/values": array for name, array in ARRAYS.items()}, **LAYOUTS[layout])
    source = Hdf5Source(path, fields=list(SPECS.values()))
    assert len(source) == ROWS
    assert is_array_backed(source) == ("chunks" not in LAYOUTS[layout])
    ids = [49, 0, 7, 7, 13, 0]
    with h5py.File(path) as file:
        found = taken(source, ids)
        for name in NAMES:
            known = np.stack([file[f"{name}/values"][i] for i in ids])
            assert (found[name].dtype, found[name].tobytes()) == (known.dtype, known.tobytes())
    if is_array_backed(source):
        (block,) = source.blocks()
        for name, array in ARRAYS.items():
            file, offset = file_of(block[name]) or pytest.fail("not mapped")
            assert path.read_bytes()[offset : offset + array.nbytes] == array.tobytes()


@settings(max_examples=examples(40))
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    chunk=st.integers(1, 10) | st.none(),
    picks=st.lists(st.floats(0, 0.999), max_size=20),
)
def test_any_records_of_any_files(counts, chunk, picks, tmp_path_factory):
    folder, total = tmp_path_factory.mktemp("any"), sum(counts)
    whole = np.arange(2 * total, dtype=np.uint16).reshape(total, 2)
    ends = np.cumsum(counts)
    paths = [
        write(
            folder / f"{number}.h5",
            {"x": whole[end - count : end]},
            **({} if chunk is None else {"chunks": (min(chunk, count), 2)}),
        )
        for number, (count, end) in enumerate(zip(counts, ends, strict=True))
    ]
    source = Hdf5Source(paths, fields=[FieldSpec("a/b", "x", np.dtype("int64"))])
    ids = [int(pick * total) for pick in picks]
    found = taken(source, ids)["a/b"]
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, whole[np.array(ids, int)])
    number = int(np.searchsorted(ends, total - 1, side="right"))
    assert locate(source, total - 1) == f"{paths[number]}, row {counts[number] - 1}"
    blocks = source.blocks() if is_array_backed(source) else []
    assert is_array_backed(source) == (chunk is None)
    assert all(list(block) == ["a~1b"] for block in blocks)


def test_fields_are_data_sets_by_their_paths(tmp_path):
    path = write(
        tmp_path / "a.h5", {"images/train": np.zeros((4, 2)), "images/test": np.zeros((3, 2)), "n": np.array(3)}
    )
    write(path, {"text": np.array(["a", "b"], object)}, "a")
    assert len(Hdf5Source(path, fields=[FieldSpec("x", "images/train")])) == 4
    with pytest.raises(ValueError, match=r"choose what to serve with fields:.*n: it is a single number") as raised:
        Hdf5Source(path)
    assert str(path) in str(raised.value)
    both = [FieldSpec("x", "images/train"), FieldSpec("y", "images/test")]
    with pytest.raises(ValueError, match=r"different numbers of rows \(images/train: 4, images/test: 3\)"):
        Hdf5Source(path, fields=both)
    with pytest.raises(ValueError, match=r"fields.x: no field 'images' is stored; there are images/test, images/train"):
        Hdf5Source(path, fields=[FieldSpec("x", "images")])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4, 2), "i4")
    layout[:2] = h5py.VirtualSource("elsewhere.h5", "x", (2, 2))
    file.create_virtual_dataset("x", layout)


def odd_type(file: Any) -> None:
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(24)
    h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple((4, 2)))


def half_written(file: Any) -> None:
    file.create_dataset("x", (4, 2), "i4", chunks=(1, 2))[:3] = 1


REFUSED = {
    "text": (lambda file: file.create_dataset("x", data=["a", "b"]), "its values are text"),
    "fixed text": (lambda file: file.create_dataset("x", data=np.array([b"a", b"b"])), "its values are text"),
    "ragged": (lambda file: file.create_dataset("x", (3,), h5py.vlen_dtype(np.int32)), "its values are ragged"),
    "references": (lambda file: file.create_dataset("x", (3,), h5py.ref_dtype), "its values are ragged, or references"),
    "compound": (lambda file: file.create_dataset("x", (3,), [("a", "i4"), ("b", "f4")]), "only numbers of one dtype"),
    "opaque": (lambda file: file.create_dataset("x", data=np.zeros(3, "V5")), "only numbers of one dtype"),
    "big-endian": (
        lambda file: file.create_dataset("x", data=np.zeros(3, ">i4")),
        "are big-endian (>i4); write them as <i4",
    ),
    "long double": (lambda file: file.create_dataset("x", data=np.zeros(3, "longdouble")), "dtype must be one of"),
    "other precision": (odd_type, "in a type of their own"),
    "virtual": (virtual, "lie in other files"),
    "external": (
        lambda file: file.create_dataset("x", (3,), "i4", external=[("raw.bin", 0, 12)]),
        "lie in other files",
    ),
    "never written": (lambda file: file.create_dataset("x", (3,), "i4"), "were never written"),
    "half written": (half_written, "1 of its 4 chunks were never written"),
    # In 64 bits, the product of its numbers of chunks is 0.
    "too many chunks": (
        lambda file: file.create_dataset("x", (1 << 32, 1 << 32), "i4", chunks=(1, 1)),
        "18,446,744,073,709,551,616 of its 18,446,744,073,709,551,616 chunks were never written",
    ),
    "no shape": (lambda file: file.create_dataset("x", data=h5py.Empty("i4")), "it is empty, without a shape"),
    "no rows": (lambda file: file.create_dataset("x", data=np.zeros((0, 2))), "holds no records"),
    "only groups": (lambda file: file.create_group("x"), "holds no arrays"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused_by_file_and_data_set(what, tmp_path):
    make, said = REFUSED[what]
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        make(file)
    for fields in (None, [FieldSpec("y", "x")]):
        if fields is None or "arrays" not in said:
            with pytest.raises(ValueError, match=r"a.h5") as raised:
                Hdf5Source(path, fields=fields)
            assert said in str(raised.value)
            assert "x" in str(raised.value) or "holds no" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"", "it is empty"),
        (lambda data: data[: len(data) - 600], "truncated file"),
        (lambda data: data[:5], "file signature not found"),
        (lambda data: b"PK" + data[2:], "file signature not found"),
        (lambda data: data[:8] + b"\xff" * 200 + data[208:], "cannot be read as HDF5"),
    ],
)
def test_damaged_files_are_refused_by_name(change, said, tmp_path):
    path = write(tmp_path / "a.h5", {"x": np.zeros((400, 2))})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a.h5 cannot be read as HDF5") as raised:
        Hdf5Source(path)
    assert said in str(raised.value)


def test_files_must_be_alike(tmp_path):
    paths = [write(tmp_path / "a.h5", {"x": np.zeros((4, 2))}), write(tmp_path / "b.h5", {"x": np.zeros((4, 3))})]
    with pytest.raises(
        ValueError, match=r"b.h5: the field 'x' must have rows of float64\[2\], as in .*a.h5; it is float64\[4, 3\]"
    ):
        Hdf5Source(paths)
    write(tmp_path / "b.h5", {"y": np.zeros((4, 2))})
    with pytest.raises(ValueError, match=r"b.h5: the field 'x' must .*; it is not there"):
        Hdf5Source(paths)
    with pytest.raises(FileNotFoundError):
        Hdf5Source(tmp_path / "c.h5")
    with pytest.raises(ValueError, match="at least one file"):
        Hdf5Source([])


def test_a_file_that_is_cut_later_is_refused_in_any_layout(layout, tmp_path):
    """The library gives zeros, unless the data set is compressed."""
    path = write(tmp_path / "a.h5", {"x": np.ones((9000, 3))}, **LAYOUTS[layout])
    source = Hdf5Source(path)
    with h5py.File(path) as file:
        os.truncate(path, path.stat().st_size // 2)
        if layout == "contiguous":
            assert not file["x"][-1].any()
        with pytest.raises(SourceChanged, match=r"a.h5 has .* bytes now"):
            source.files()[0].check_unchanged()
        if "chunks" in LAYOUTS[layout]:
            with pytest.raises(SourceChanged, match=r"a.h5 has .* bytes now"):
                taken(source, list(range(0, 9000, 100)))


def test_a_damaged_chunk_is_a_wrong_record(tmp_path):
    array = RNG.integers(0, 99, (40, 64))
    path = write(tmp_path / "a.h5", {"x": array}, **LAYOUTS["gzip"] | {"chunks": (10, 64)})
    with h5py.File(path) as file:
        place = file["x"].id.get_chunk_info(2)
    with path.open("r+b") as raw:
        raw.seek(place.byte_offset + place.size // 2)
        raw.write(bytes(20))
    source = Hdf5Source(path)
    np.testing.assert_array_equal(taken(source, [5, 39])["x"], array[[5, 39]])
    with pytest.raises(WrongRecord, match=r"the field 'x' of the record 22 cannot be read: .*a.h5, row 22"):
        taken(source, [5, 22, 39])
    for wrong in (-1, 40):
        with pytest.raises(IndexError, match=r"record ids must be in 0..39"):
            taken(source, [0, wrong])
        with pytest.raises(IndexError):
            source.locate(wrong)


def test_the_digest_covers_content_and_what_is_served_but_no_paths(tmp_path):
    path = write(tmp_path / "a.h5", {"x": np.zeros((4, 2), np.int8), "y": np.zeros((4, 2), np.int8)})
    shutil.copy(path, tmp_path / "b.h5")

    def digest(name: str = "a.h5", **fields: Any) -> bytes:
        return Hdf5Source(tmp_path / name, fields=[FieldSpec(*field) for field in fields.values()]).content_digest()

    one = digest(a=("x", "x"))
    assert digest("b.h5", a=("x", "x")) == one
    others = [digest(a=("x", "y")), digest(a=("z", "x")), digest(a=("x", "x", np.dtype("int16")))]
    write(tmp_path / "b.h5", {"x": np.ones((4, 2), np.int8), "y": np.zeros((4, 2), np.int8)})
    others.append(digest("b.h5", a=("x", "x")))
    assert len({one, *others}) == 5


def test_pickles_open_the_same_file_or_say_no(layout, tmp_path):
    path = write(tmp_path / "a.h5", {"x": np.arange(150).reshape(50, 3)}, **LAYOUTS[layout])
    pickled = pickle.dumps(Hdf5Source(path, name="web"))
    again = pickle.loads(pickled)
    assert (again.name, taken(again, [7])["x"].tolist()) == ("web", [[21, 22, 23]])
    write(tmp_path / "b.h5", {"x": np.arange(100).reshape(50, 2) + 1}).rename(path)
    with pytest.raises(ValueError, match="holds other records than when the source was pickled"):
        pickle.loads(pickled)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_threads_and_forked_processes_read_the_right_records(tmp_path):
    array = np.arange(4000 * 8, dtype=np.int32).reshape(4000, 8)
    path = write(tmp_path / "a.h5", {"x": array}, **LAYOUTS["gzip"] | {"chunks": (100, 8)})
    write(path, {"y": array}, "a")
    source = Hdf5Source(path)
    wrong: list[Any] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            ids = rng.integers(0, 4000, 32)
            found = source.take(ids)
            if not all(np.array_equal(found[name], array[ids]) for name in "xy"):
                wrong.append(ids)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    child = os.fork()
    if child == 0:
        read(9)
        os._exit(len(wrong))
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert not wrong


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_forked_process_refuses_a_file_that_was_replaced(tmp_path):
    path = write(tmp_path / "a.h5", {"x": np.zeros((8, 2))}, chunks=(2, 2))
    source = Hdf5Source(path)
    write(tmp_path / "b.h5", {"x": np.ones((8, 2))}, chunks=(2, 2)).rename(path)
    assert not taken(source, [3])["x"].any()
    child = os.fork()
    if child == 0:
        try:
            taken(source, [3])
        except SourceChanged as error:
            os._exit(0 if "a.h5 was replaced" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_of_which_only_mapped_data_sets_are_served_is_not_locked(tmp_path):
    path = write(tmp_path / "a.h5", {"x": np.arange(8)})
    write(path, {"y": np.arange(8)}, "a", chunks=(2,))
    source = Hdf5Source(path, fields=[FieldSpec("x", "x")])
    with h5py.File(path, "r+"):
        assert taken(source, [5])["x"].tolist() == [5]


def test_without_h5py_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", {"x": np.zeros((4, 2))})
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'mixserve\[hdf5\]'"):
        Hdf5Source(path)


def test_a_configuration_is_checked(tmp_path, capsys):
    for part in range(2):
        write(tmp_path / f"part-{part}.h5", {"images/train": np.zeros((4, 2)), "labels/train": np.zeros(4, np.int8)})
    path = tmp_path / "mixture.yaml"
    path.write_text(
        'mixtures: {train: {sources: {a: {kind: hdf5, path: "part-*.h5", '
        "fields: {x: images/train, y: {from: labels/train, as: int32}}, weight: 1}}}}"
    )
    app(["check", str(path)], standalone_mode=False)
    assert "int32" in capsys.readouterr().out
