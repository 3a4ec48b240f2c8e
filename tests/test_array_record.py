"""ArrayRecord files: the records of the format's own library, from many files, threads and processes."""

import json
import math
import os
import pickle
import re
import resource
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from mixserve import ArrayRecordSource
from mixserve.error_boundary import WrongRecord
from mixserve.sources.fields import FieldSpec
from mixserve_client.errors import SourceChanged
from tests.forked import in_a_fork
from tests.records import example, taken, write_array_record

INT32 = np.dtype(np.int32)
RNG = np.random.default_rng(0)
RAGGED = [RNG.integers(-9, 70_000, RNG.integers(0, 20)).tolist() for _ in range(200)]
TOKENS = [FieldSpec("tokens", "ids", INT32, 20, pad=-1, lengths="count")]
BYTES = [FieldSpec("x", "data", None, 3000, lengths="n")]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("array_record")
    records = [example({"ids": ids, "label": number}) for number, ids in enumerate(RAGGED)]
    parts = [records[:1], records[1:150], [], records[150:]]
    options = ["group_size:1", "group_size:1,uncompressed", "group_size:1", "group_size:1,brotli:3"]
    return [
        write_array_record(folder / f"{number}.array_record", part, option)
        for number, (part, option) in enumerate(zip(parts, options, strict=True))
    ]


def test_records_are_those_of_the_library(files):
    source = ArrayRecordSource(files, record="bytes", fields=BYTES)
    library = ArrayRecordDataSource([str(path) for path in files])
    ids = [7, 199, 0, 7, 150, 149, 1, *range(200)]
    rows = taken(source, ids)
    for row, size, expected in zip(rows["x"], rows["n"], library.__getitems__(ids), strict=True):
        assert row[:size].tobytes() == expected
    assert taken(source, [])["x"].shape == (0, 3000)


def test_examples_are_padded_and_narrowed(files):
    source = ArrayRecordSource(files, fields=[*TOKENS, FieldSpec("label", "label")])
    assert repr(source) == "ArrayRecordSource({tokens: int32[20], count: int32[], label: int64[]}, length=200)"
    ids = [3, 199, 0, 3]
    batch = taken(source, ids)
    assert batch["tokens"].dtype == INT32
    assert batch["label"].tolist() == ids
    for row, count, record_id in zip(batch["tokens"], batch["count"], ids, strict=True):
        assert row.tolist() == RAGGED[record_id] + [-1] * (20 - count)
    assert source.locate(151) == f"{files[3]}, record 1"
    assert source.locate(0) == f"{files[0]}, record 0"
    assert [file.path for file in source.files()] == files


def test_a_pickled_source_opens_its_files_again(files):
    source = ArrayRecordSource(files, fields=TOKENS)
    again = pickle.loads(pickle.dumps(source))
    assert taken(again, [5])["tokens"].tolist() == taken(source, [5])["tokens"].tolist()
    assert again.content_digest() == source.content_digest()


def test_a_source_that_keeps_nothing_needs_no_home(files, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "MIXSERVE_PREPARED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(ArrayRecordSource(files)) == 200


def test_the_digest_is_of_content_and_options_and_not_of_paths(files, tmp_path):
    digest = ArrayRecordSource(files, fields=TOKENS).content_digest()
    copies = [tmp_path / path.name for path in files]
    for path, copy in zip(files, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    assert ArrayRecordSource(copies, fields=TOKENS).content_digest() == digest
    assert ArrayRecordSource(files, fields=[FieldSpec("tokens", "ids", INT32, 21)]).content_digest() != digest
    assert ArrayRecordSource(files[::-1], fields=TOKENS).content_digest() != digest


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "64KB"),
        (b"PK" * 50_000, "Riegeli"),
        (lambda data: data[:65536], ""),
        (lambda data: data[:-1], ""),
        (lambda data: data[:-70_000] + data[-65_536:], ""),
    ],
)
def test_no_whole_file_is_refused_by_name(files, tmp_path, content, why):
    path = tmp_path / "x.array_record"
    path.write_bytes(content(files[1].read_bytes()) if callable(content) else content)
    with pytest.raises(ValueError, match=rf"{path} is not a whole ArrayRecord file: .*{why}"):
        ArrayRecordSource([files[0], path], fields=TOKENS)


def test_files_that_are_not_there_or_empty(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        ArrayRecordSource(tmp_path / "gone", fields=TOKENS)
    with pytest.raises(ValueError, match="have no records"):
        ArrayRecordSource(files[2], fields=TOKENS)
    with pytest.raises(ValueError, match="at least one file"):
        ArrayRecordSource([])


def test_a_file_that_is_cut_later_gives_no_empty_records(tmp_path):
    path = write_array_record(tmp_path / "x", [os.urandom(2000) for _ in range(300)])
    source = ArrayRecordSource(path, record="bytes", fields=BYTES)
    os.truncate(path, 100_000)
    assert source._store._readers[0].read([200]) == [b""]  # what the library says of it
    with pytest.raises(SourceChanged, match=rf"{path} has 100,000 bytes now"):
        taken(source, [200])


def test_records_that_are_empty_are_served(tmp_path):
    path = write_array_record(tmp_path / "x", [b"", b"a", b""])
    batch = taken(ArrayRecordSource(path, record="bytes", fields=BYTES), [0, 1, 2])
    assert batch["n"].tolist() == [0, 1, 0]


def test_damage_inside_names_file_and_record(tmp_path):
    path = write_array_record(tmp_path / "x", [os.urandom(2000) for _ in range(100)])
    data = bytearray(path.read_bytes())
    data[100_000:100_010] = bytes(10)
    path.write_bytes(data)
    source = ArrayRecordSource(path, record="bytes", fields=BYTES)
    assert taken(source, [0, 99])["n"].tolist() == [2000, 2000]
    with pytest.raises(WrongRecord, match=rf"{path}, record \d+: cannot be read: "):
        taken(source, range(100))


def test_a_replaced_file_is_not_looked_at(files, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(files[0].read_bytes())
    source = ArrayRecordSource(path, fields=TOKENS)
    (tmp_path / "y").write_bytes(files[3].read_bytes())
    (tmp_path / "y").rename(path)
    assert taken(source, [0])["count"].tolist() == [len(RAGGED[0])]


def test_groups_are_told_of(tmp_path, caplog):
    path = write_array_record(tmp_path / "x", [example({"ids": [1]})] * 3, "group_size:64")
    assert taken(ArrayRecordSource(path), [2])["ids"].tolist() == [1]
    (line,) = caplog.messages
    assert line.startswith(f"{path} was written with group_size:64: to read one record, up to 64 must be")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_threads_and_a_forked_child_read_the_same(files):
    source = ArrayRecordSource(files, fields=TOKENS)
    expected = taken(source, range(200))["tokens"]
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            ids = rng.integers(0, 200, 64)
            if not np.array_equal(source.take(ids)["tokens"], expected[ids]):
                wrong.append(ids)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(6)]
    for thread in threads:
        thread.start()
    assert in_a_fork(lambda: (work(7), len(wrong))[1]) == "0"
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_files_than_the_soft_limit_are_opened(tmp_path):
    path = write_array_record(tmp_path / "x", [example({"label": 0})])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits[1] > 400
    # Each file needs two: the first limit is too low for our own, the second for those of the library.
    for more in (20, 80):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + more, limits[1]))
        try:
            assert taken(ArrayRecordSource([path] * 60), range(60))["label"].tolist() == [0] * 60
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def refusal(tmp_path: Path, records: list[bytes], ids: list[int] | None = None, **options) -> str:
    path = write_array_record(tmp_path / "x", records)
    with pytest.raises(ValueError, match=r"(?s)..") as raised:
        taken(ArrayRecordSource(path, **options), range(len(records)) if ids is None else ids)
    return str(raised.value).replace(f"{path}, ", "")


def test_what_examples_may_not_be(tmp_path):
    def said(*features, fields=None):
        return refusal(tmp_path, [example(one) for one in features], fields=fields)

    assert said({"a": [1, 2]}, {"a": [1]}).startswith(
        "record 1: the field 'a' of record 1 is int64[1], and the source has int64[2] there; if its length differs"
    )
    assert said({"a": [1]}, {"b": [1]}).startswith(
        "record 1: the record lacks the field 'a'; if records may lack it, give fields.a a default"
    )
    assert said({"a": [1]}, {"a": [1.5]}).startswith("record 1: the field 'a' of record 1 is float32[]")
    assert "the field 'a' has values from 1 to 40000, which do not all fit into as: int8" in said(
        {"a": [1]}, {"a": [1, 40_000]}, fields=[FieldSpec("a", "a", np.dtype(np.int8), 4)]
    )
    assert "more than its length 1" in said({"a": [1, 2]}, fields=[FieldSpec("a", "a", None, 1)])
    assert "2 strings of bytes" in said({"a": [b"1", b"2"]}, fields=[FieldSpec("a", "a", None, 4)])
    assert "2 strings of bytes" in said({"a": b"1"}, {"a": [b"1", b"2"]}, fields=[FieldSpec("a", "a", None, 4)])
    assert "no field 'z' is stored; there are a" in said({"a": [1]}, fields=[FieldSpec("z", "z")])
    assert "none of the stored fields a has a fixed shape" in said({"a": b"1"})
    assert "do not all fit into as: float32" in said({"a": 1}, fields=[FieldSpec("a", "a", np.dtype(np.float32))])
    assert refusal(tmp_path, [b"\xff" * 9]).startswith("record 0: it is not a tf.train.Example")
    assert refusal(tmp_path, [example({"a": 1}), b"\xff" * 9]).startswith("record 1: it is not a tf.train.Example")


def test_features_of_every_kind(tmp_path):
    rows = [
        {"i": [1 << 62, -5], "f": np.float32([0.1, np.inf]), "one": 1.5, "b": b"\0\xff", "big": 255},
        {"i": [0, -(1 << 63)], "f": np.float32([-1, 2]), "one": 2.5, "b": b"", "big": 0},
    ]
    path = write_array_record(tmp_path / "x", map(example, rows))
    batch = taken(ArrayRecordSource(path), [1, 0])
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "i": ("int64", (2, 2)),
        "f": ("float32", (2, 2)),
        "one": ("float32", (2,)),
        "big": ("int64", (2,)),
    }
    for place, row in enumerate(rows[::-1]):
        assert batch["i"][place].tolist() == row["i"]
        assert batch["f"][place].tobytes() == row["f"].tobytes()
    fields = [
        FieldSpec("b", "b", None, 3, pad=7, lengths="n"),
        FieldSpec("u", "big", np.dtype(np.uint8)),
        FieldSpec("f", "f", np.dtype(np.float64)),
    ]
    batch = taken(ArrayRecordSource(path, fields=fields), [0, 1])
    assert batch["b"].tolist() == [[0, 255, 7], [7, 7, 7]]
    assert (batch["u"].dtype, batch["u"].tolist()) == (np.uint8, [255, 0])
    assert batch["f"].dtype == np.float64
    assert batch["f"].tolist() == [row["f"].astype(float).tolist() for row in rows]


def test_what_a_record_lacks_has_its_default(tmp_path):
    rows = [{"a": 1}, {"b": [1, 2], "a": None}, {"b": [], "c": [3, 4], "f": 0.5}]
    path = write_array_record(tmp_path / "x", map(example, rows))
    fields = [
        FieldSpec("a", "a", INT32, default=-1),
        FieldSpec("b", "b", INT32, 3, lengths="n", default=()),
        FieldSpec("c", "c", default=9),
    ]
    batch = taken(ArrayRecordSource(path, fields=fields), [0, 1, 2])
    assert batch["a"].tolist() == [1, -1, -1]
    assert (batch["b"].tolist(), batch["n"].tolist()) == ([[0, 0, 0], [1, 2, 0], [0, 0, 0]], [0, 2, 0])
    assert batch["c"].tolist() == [[9, 9], [9, 9], [3, 4]]
    for default in (math.nan, 0.1, math.inf):
        floats = ArrayRecordSource(path, fields=[FieldSpec("f", "f", default=default)])
        assert np.array_equal(taken(floats, [0, 2])["f"], np.array([default, 0.5], np.float32), equal_nan=True)
    for spec, why in (
        (FieldSpec("a", "a", default=()), r"\[\] is for fields with a length"),
        (FieldSpec("b", "b", None, 3, default=1), r"must be \[\] for a field with a length"),
        (FieldSpec("a", "a", INT32, default=0.5), "0.5 is not a value of int32"),
        (FieldSpec("a", "a", INT32, default=1 << 70), "1180591620717411303424 is not a value of int32"),
        (FieldSpec("f", "f", default=1e300), r"1e\+300 is not a value of float32"),
    ):
        with pytest.raises(ValueError, match=rf"fields\.{spec.name}\.default: .*{why}"):
            ArrayRecordSource(path, fields=[spec])


def npy(array: np.ndarray, **options) -> bytes:
    file = BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["bool", "int8", ">i2", "uint64", "float16", ">f8", "complex64"])
def test_npy_records_of_any_dtype_and_order(tmp_path, dtype):
    arrays = [np.asfortranarray(RNG.integers(0, 2, (3, 2))).astype(dtype), np.ones((3, 2), dtype)]
    path = write_array_record(tmp_path / "x", map(npy, arrays))
    batch = taken(ArrayRecordSource(path, record="npy", field="x"), [0, 1])
    assert batch["x"].dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(batch["x"], arrays)


def test_npy_records_may_be_ragged_and_not_of_objects(tmp_path):
    rows = [np.arange(2 * size, dtype=np.uint16).reshape(size, 2) for size in (2, 0, 3)]
    path = write_array_record(tmp_path / "x", map(npy, rows))
    batch = taken(
        ArrayRecordSource(path, record="npy", fields=[FieldSpec("x", "data", None, 3, lengths="n")]), [0, 1, 2]
    )
    assert batch["n"].tolist() == [2, 0, 3]
    assert all(np.array_equal(got[:size], row) for got, size, row in zip(batch["x"], batch["n"], rows, strict=True))
    good = npy(np.arange(3))
    assert "record 1: it is not an .npy array" in refusal(tmp_path, [good, b"abc"], record="npy")
    assert "record 0: it is not an .npy array" in refusal(tmp_path, [b""], record="npy")
    wrapped = good[:128].replace(b"(3,), }" + b" " * 20, b"(4294967296, 4294967296), }")
    assert f"has 0 bytes of values, and needs {8 << 64}" in refusal(tmp_path, [good, wrapped], record="npy")
    assert "has 23 bytes of values, and needs 24" in refusal(tmp_path, [good, good[:-1]], record="npy")
    assert "cannot be served: it must be of numbers" in refusal(
        tmp_path, [npy(np.array([{}]), allow_pickle=True)], record="npy"
    )
    assert "is float64[3], and the source has int64[3]" in refusal(tmp_path, [good, npy(np.ones(3))], record="npy")


def test_json_records(tmp_path):
    rows = [
        {"ids": [1, 2], "x": 0.5, "grid": [[1, 2], [3, 4]], "text": "é", "yes": True, "deep": {"a": 1}},
        {"ids": [], "x": 1, "grid": [[5, 6], [7, 8]], "text": "", "yes": False, "ids2": None},
    ]
    path = write_array_record(tmp_path / "x", (json.dumps(row).encode() for row in rows))
    fields = [
        FieldSpec("ids", "ids", np.dtype(np.uint16), 2, lengths="n"),
        FieldSpec("x", "x", np.dtype(np.float32)),
        FieldSpec("grid", "grid", np.dtype(np.int8)),
        FieldSpec("text", "text", None, 2),
        FieldSpec("yes", "yes"),
    ]
    batch = taken(ArrayRecordSource(path, record="json", fields=fields), [0, 1])
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "ids": "uint16",
        "n": "int32",
        "x": "float32",
        "grid": "int8",
        "text": "uint8",
        "yes": "bool",
    }
    assert batch["ids"].tolist() == [[1, 2], [0, 0]]
    assert batch["x"].tolist() == [0.5, 1.0]
    assert batch["grid"].tolist() == [row["grid"] for row in rows]
    assert batch["text"].tolist() == [list("é".encode()), [0, 0]]
    assert batch["yes"].tolist() == [True, False]


def test_what_json_records_may_not_be(tmp_path):
    def said(*rows, fields=None):
        return refusal(tmp_path, [json.dumps(row).encode() for row in rows], record="json", fields=fields)

    assert "is not JSON" in refusal(tmp_path, [b"{"], record="json")
    assert "is not JSON" in refusal(tmp_path, [b"[" * 100_000], record="json")
    assert "must be a JSON object" in said([1])
    assert "is float64[], and the source has int64[]" in said({"a": 1}, {"a": 1.5})
    assert "record 1: the field 'a' must be numbers" in said({"a": 1}, {"a": [{}]})
    assert "different lengths inside" in said({"a": [[1], [1, 2]]}, fields=[FieldSpec("a", "a")])
    assert "must be numbers of up to 64 bits" in said({"a": 1 << 70}, fields=[FieldSpec("a", "a")])
    assert "lacks the field 'a'" in said({"a": 1}, {"a": None})
    assert "do not all fit into as: int8" in said({"a": 1}, {"a": 300}, fields=[FieldSpec("a", "a", np.dtype("int8"))])


def test_options_that_do_not_fit_are_refused(files):
    with pytest.raises(ValueError, match="record: 'xml' is not one of example, bytes, npy, json"):
        ArrayRecordSource(files, record="xml")
    with pytest.raises(ValueError, match="field: the records have names"):
        ArrayRecordSource(files, field="x")


@pytest.mark.parametrize(
    ("first", "second", "dtype", "said"),
    [
        ("1", "16777217", "float32", "has the number 16777217, which float32 does not have"),
        ("1.5", "9007199254740993", None, "has the number 9007199254740993, which float64 does not have"),
        ("1.5", "9223372036854775807", None, "has the number 9223372036854775807, which float64 does not have"),
        ("[1.5]", "[0.5, 9007199254740993]", None, "has the integer 9007199254740993 among other numbers"),
        ("[1, 2]", "[1, 9223372036854775809]", None, "has the integer 9223372036854775809 among other numbers"),
        ("1", "70000", "float16", "has the number 70000, which float16 does not have; choose a wider as:"),
        ("1", "-9223372036854775808", "float16", "has the number -9223372036854775808, which float16 does not have"),
        ("1.5", "1e300", "float32", r"has the number 1e+300, which float32 does not have"),
        ("[1.5]", "[1e300, 0.5]", "float32", "has the number 1e+300, which float32 does not have"),
        ("1.5", "1e400", None, "has the number '1e400', which is too large for float64"),
        ("[1, 2]", '"hi"', "uint8", "must be numbers, as in the first record that has it, got 'hi'"),
        ('"hi"', "[1, 2]", None, "must be text or bytes, as in the first record that has it, got [1, 2]"),
    ],
)
def test_json_numbers_that_a_dtype_does_not_have_are_refused(tmp_path, first, second, dtype, said):
    length = 2 if first[0] in '["' else None
    fields = [FieldSpec("x", "x", None if dtype is None else np.dtype(dtype), length)]
    records = [f'{{"x": {value}}}'.encode() for value in (first, second)]
    assert f"record 1: the field 'x' {said}" in refusal(tmp_path, records, record="json", fields=fields)


def test_fractions_of_json_are_rounded_and_what_is_not_finite_stays(tmp_path):
    values = [0.1, math.inf, -math.inf, math.nan, 16777216, 1e30]
    path = write_array_record(tmp_path / "x", (json.dumps({"x": value}).encode() for value in values))
    source = ArrayRecordSource(path, record="json", fields=[FieldSpec("x", "x", np.dtype(np.float32))])
    assert np.array_equal(taken(source, range(6))["x"], np.array(values, np.float32), equal_nan=True)


@pytest.mark.parametrize(("first", "second"), [([1, 2], b"AB"), (b"AB", [1, 2])])
def test_an_example_with_bytes_for_numbers_is_refused(tmp_path, first, second):
    records = [example({"x": value}) for value in (first, second)]
    found = refusal(tmp_path, records, fields=[FieldSpec("x", "x", np.dtype(np.uint8), 4)])
    assert re.search("record 1: the field 'x' must be .* as in the first record that has it, got", found)
