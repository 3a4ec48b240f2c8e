"""Which errors are about the data of a record, and may be listed, and what a source without some records is."""

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import TokenSource
from mixserve.error_boundary import WrongRecord
from mixserve.sources.decoders import read_npy
from mixserve.sources.skipped import most_skipped
from mixserve.sources.undecodable import LongRecord, UnreadRecord, is_undecodable
from mixserve.sources.without import SourceWithout
from mixserve_client import SourceChanged
from tests.profiles import examples
from tests.records import tfrecord
from tests.test_on_error import COUNT, check, npy, refused, source_of, values, write

FACTORY = """
import os
import numpy as np, jax
from mixserve.error_boundary import WrongRecord
from mixserve_client.errors import Unavailable

class Records:
    def __init__(self, wrong, digest=True):
        self.wrong = wrong
        if digest:
            self.content_digest = lambda: b"records"
    def __len__(self):
        return 3000
    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((2,), np.int64)}
    def take(self, record_ids):
        if 2100 in record_ids:
            self.wrong(record_ids)
        return {"x": np.stack([record_ids, record_ids], 1)}

def fail(error):
    def wrong(record_ids):
        raise error
    return wrong

def disk(record_ids):
    try:
        os.pread(-1, 1, 0)
    except OSError:
        raise WrongRecord("no record") from None

def chained(record_ids):
    try:
        os.pread(-1, 1, 0)
    except OSError as error:
        raise WrongRecord("no record") from error

class Moment:
    is_over = False
    def __call__(self, record_ids):
        if not self.is_over:
            self.is_over = len(record_ids) == 1
            raise WrongRecord("a bad moment")

def make(what, digest=True):
    return Records(WRONG[what], digest)

WRONG = {
    "wrong": fail(WrongRecord("no record")), "disk": disk, "chained": chained, "moment": Moment(),
    "OSError": fail(OSError(5, "Input/output error")), "TimeoutError": fail(TimeoutError("too slow")),
    "Unavailable": fail(Unavailable("down")), "MemoryError": fail(MemoryError()), "ValueError": fail(ValueError("no")),
    "SystemExit": fail(SystemExit(3)),
}

class Keyed:
    def __len__(self): return 9
    def element_spec(self): return {"x": jax.ShapeDtypeStruct((2,), np.int64)}
    def get_batch_at(self, start, size, key=None): return {"x": np.zeros((size, 2), np.int64)}

def make_keyed():
    return Keyed()
"""


@pytest.fixture
def factory(tmp_path, monkeypatch) -> Iterator[Callable[[str], Path]]:
    (tmp_path / "factory_of_test_on_error.py").write_text(FACTORY)
    monkeypatch.delitem(sys.modules, "factory_of_test_on_error", raising=False)

    def make(more: str) -> Path:
        return write(tmp_path, f"a: {{kind: factory, weight: 1, on_error: skip, {more}}}")

    yield make
    sys.modules.pop("factory_of_test_on_error", None)


def arguments(what: str, more: str = "") -> str:
    return f'function: "factory_of_test_on_error:make", arguments: {{what: {what}{more}}}'


def test_a_wrong_record_of_a_factory_is_listed(factory):
    file = factory(arguments("wrong"))
    assert "m: a: 1 records left out\n  record 2,100: WrongRecord: no record" in check(file, "--full")
    assert source_of(file).take(np.array([2099, 2100]))["x"][:, 0].tolist() == [2099, 2101]


def test_a_record_that_can_be_read_again_is_not_listed(factory):
    assert "0 records left out" in check(factory(arguments("moment")), "--full")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("disk", "WrongRecord: no record"),
        ("chained", "WrongRecord: no record"),
        ("OSError", "OSError: .* Input/output error"),
        ("TimeoutError", "TimeoutError: too slow"),
        ("Unavailable", "Unavailable: down"),
        ("MemoryError", "MemoryError"),
        ("ValueError", "ValueError: no"),
        ("SystemExit", "SystemExit: 3"),
    ],
)
def test_what_may_go_well_next_time_is_never_listed(factory, what, said):
    found = check(factory(arguments(what)), "--full", code=2)
    assert "reading the record 2100 of the source 'a' failed: " in found
    assert said.partition(".*")[2] in found
    assert "skipped.json" not in found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('function: "factory_of_test_on_error:make_keyed"', "depend on their number alone"),
        (arguments("wrong", ", digest: false"), "give it a content_id"),
    ],
)
def test_sources_that_cannot_be_listed_are_refused(factory, more, said):
    file = factory(more)
    assert said in check(file, "--full", code=2)
    assert said in refused(file)


def test_an_id_serves_in_place_of_a_digest(factory):
    file = factory(arguments("wrong", ", digest: false") + ", content_id: first")
    check(file, "--full")
    assert len(source_of(file)) == 2999
    file.write_text(file.read_text().replace("first", "second"))
    assert "have changed since" in refused(file)


def test_a_file_that_is_cut_meanwhile_is_no_list_of_bad_records(tmp_path):
    (tmp_path / "data.tfrecord").write_bytes(tfrecord(values()))
    (tmp_path / "cutting.py").write_text(
        "import os\nfrom mixserve import TFRecordSource\n\n"
        "class Cut(TFRecordSource):\n"
        "    def take(self, ids):\n"
        "        if len(ids) == 40:\n"  # the first read of all: what follows finds a file that was cut
        "            os.truncate(self.files()[0].path, 900)\n"
        "        return super().take(ids)\n\n"
        "def make(path):\n"
        "    return Cut(path, record='json')\n"
    )
    cut = write(
        tmp_path,
        'a: {kind: factory, function: "cutting:make", arguments: {path: data.tfrecord}, weight: 1, on_error: skip}',
    )
    assert "data.tfrecord has 900 bytes now" in check(cut, "--full", code=2)
    assert json.loads((tmp_path / "mixture.skipped.json").read_text())["mixtures"] == {}


def test_a_damaged_chunk_of_a_library_is_not_listed(tmp_path):
    import h5py

    with h5py.File(tmp_path / "data.h5", "w") as h5:
        h5.create_dataset("x", data=np.arange(4000).reshape(1000, 4), chunks=(10, 4), compression="gzip")
        at = h5["x"].id.get_chunk_info(50).byte_offset
    with (tmp_path / "data.h5").open("r+b") as data:
        data.seek(at)
        data.write(b"\xff" * 8)
    file = write(tmp_path, "a: {kind: hdf5, path: data.h5, weight: 1, on_error: skip}")
    assert "the field 'x' of the record 500 cannot be read" in check(file, "--full", code=2)


def test_which_errors_are_about_the_data():
    def during(outer: Exception, inner: BaseException, *, as_cause: bool) -> Exception:
        try:
            try:
                raise inner
            except BaseException as error:
                raise outer from (error if as_cause else None)
        except Exception as error:
            return error

    assert is_undecodable(WrongRecord("x"))
    assert is_undecodable(during(WrongRecord("x"), ValueError("y"), as_cause=True))
    for error in (ValueError("x"), LongRecord("x"), UnreadRecord("x"), OSError("x"), SourceChanged("x")):
        assert not is_undecodable(error)
    for inner in (OSError("x"), TimeoutError("x"), SourceChanged("x"), MemoryError(), KeyboardInterrupt()):
        assert not is_undecodable(during(WrongRecord("x"), inner, as_cause=True))
        assert not is_undecodable(during(WrongRecord("x"), inner, as_cause=False))


@settings(max_examples=examples(30), deadline=None)
@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_ids_are_those_of_what_is_left(case):
    length, left_out = case
    ids = np.arange(length, dtype=np.uint16)
    source = SourceWithout(
        TokenSource(ids, sequence_length=1, dtype="uint16"), np.array(sorted(left_out), np.int64), hint="hint"
    )
    left = [number for number in range(length) if number not in left_out]
    assert source.ids_within(np.arange(len(source))).tolist() == left
    assert [int(source.ids_within(np.array([record_id]))[0]) for record_id in range(len(source))] == left
    for wrong in (-1, len(source)):
        with pytest.raises(IndexError):
            source.take(np.array([wrong]))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.content_digest() == source.content_digest()
    assert copy.take(np.arange(len(left)))["tokens"][:, 0].tolist() == left


@pytest.mark.parametrize(
    "garbled", [(b")", b"("), (b"<i8", b",i8"), (b"(3,", b"{[]"), (b"'d", b"\n "), (b": (", b":\\(")]
)
def test_garbled_headers_of_npy_are_value_errors(garbled):
    with pytest.raises(ValueError, match=r"it is not an \.npy array: "):
        read_npy(npy(1).replace(garbled[0], garbled[1], 1))


def test_long_records_are_refused_not_skipped(tmp_path):
    records = [json.dumps({"x": [number] * (9 if number == 5 else 3)}).encode() for number in range(COUNT)]
    (tmp_path / "data.tfrecord").write_bytes(tfrecord(records))
    section = "{kind: tfrecord, path: data.tfrecord, record: json, fields: {x: {from: x, length: 4}}"
    file = write(tmp_path, f"a: {section}, weight: 1, on_error: skip}}")
    said = check(file, "--full", code=2)
    assert "reading the record 5 of the source 'a' failed" in said
    assert "has 9 values, more than its length 4" in said
    file.write_text(file.read_text().replace(", on_error: skip", ""))
    assert "on_error" not in check(file, "--full", code=2)


def test_bounds():
    assert [most_skipped(records) for records in (0, 1, 2, 3, 20, 32, 1600, 5000, 10**9)] == [
        0,
        0,
        1,
        1,
        10,
        16,
        16,
        50,
        1_000_000,
    ]
