"""TFRecord files: their index, which is kept, and what is damaged, cut or compressed."""

import gzip
import os
import pickle
import random
import struct
import threading
import zlib
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import TFRecordSource
from mixserve.error_boundary import WrongRecord
from mixserve.sources import tfrecord_source
from mixserve.sources.crc32c import crcs_of_words
from mixserve.sources.fields import FieldSpec
from mixserve.sources.open_file import OpenFile
from mixserve.sources.prepared import preparing_in
from mixserve.sources.tfrecord_source import index_tfrecord
from mixserve_client.errors import SourceChanged
from tests.forked import in_a_fork
from tests.profiles import examples
from tests.records import example, taken, tfrecord

BYTES = [FieldSpec("x", "data", None, 3000, lengths="n")]
RNG = random.Random(0)
RECORDS = [RNG.randbytes(RNG.randrange(3000)) for _ in range(150)]


@pytest.fixture(autouse=True)
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with preparing_in(folder):
        yield folder


@pytest.fixture
def files(tmp_path) -> list[Path]:
    parts = [RECORDS[:1], RECORDS[1:100], [], RECORDS[100:]]
    for number, part in enumerate(parts):
        (tmp_path / f"{number}.tfrecord").write_bytes(tfrecord(part))
    return sorted(tmp_path.iterdir())


def test_records_are_those_of_grain(files):
    from grain.experimental import TFRecordIterDataset

    expected = [record for path in files if path.stat().st_size for record in TFRecordIterDataset(str(path))]
    assert expected == RECORDS
    source = TFRecordSource(files, record="bytes", fields=BYTES)
    ids = [149, 0, 100, 99, 0, *range(150)]
    batch = taken(source, ids)
    got = [row[:size].tobytes() for row, size in zip(batch["x"], batch["n"], strict=True)]
    assert got == [expected[record_id] for record_id in ids]
    assert taken(source, [])["x"].shape == (0, 3000)
    assert source.locate(101) == f"{files[3]}, record 1, byte {len(RECORDS[100]) + 16:,}"
    source.prefetch(np.arange(150))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(taken(again, ids)["x"], batch["x"])


def test_examples_are_decoded(tmp_path):
    rows = [{"ids": [1, 2, 3], "label": 7}, {"ids": [4], "label": 8}]
    (tmp_path / "x").write_bytes(tfrecord(map(example, rows)))
    fields = [FieldSpec("tokens", "ids", np.dtype(np.int32), 3, pad=-1), FieldSpec("label", "label")]
    batch = taken(TFRecordSource(tmp_path / "x", fields=fields), [1, 0])
    assert batch["tokens"].tolist() == [[4, -1, -1], [1, 2, 3]]
    assert batch["label"].tolist() == [8, 7]


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(12, 60), st.integers(0, 60))
@settings(max_examples=examples(40))
def test_an_index_is_the_same_for_all_blocks(tmp_path_factory, sizes, block, long):
    path = tmp_path_factory.getbasetemp() / "indexed"
    path.write_bytes(tfrecord(bytes(size) for size in sizes))
    expected = np.cumsum([0, *(size + 16 for size in sizes)])
    limits = tfrecord_source._BLOCK_BYTES, tfrecord_source._LONG_BYTES
    tfrecord_source._BLOCK_BYTES, tfrecord_source._LONG_BYTES = block, long
    try:
        assert index_tfrecord(OpenFile(path)).tolist() == expected.tolist()
    finally:
        tfrecord_source._BLOCK_BYTES, tfrecord_source._LONG_BYTES = limits


@given(st.binary(min_size=8, max_size=8))
@settings(max_examples=examples(40))
def test_checksums_of_heads_are_those_of_the_library(word):
    crc = google_crc32c.value(word)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert crcs_of_words(np.frombuffer(word, np.uint8)[None]).tolist() == [masked]


def test_the_index_is_made_once_and_again_when_the_file_changes(files, kept, monkeypatch):
    made: list[Path] = []

    def index(file: OpenFile):
        made.append(file.path)
        return index_tfrecord(file)

    monkeypatch.setattr(tfrecord_source, "index_tfrecord", index)
    TFRecordSource(files, record="bytes", fields=BYTES)
    assert made == files
    digest = TFRecordSource(files, record="bytes", fields=BYTES).content_digest()
    assert made == files
    assert len(list(kept.glob("tfrecord/index/*/index-*"))) == 4
    new = files[0].with_name("new")
    new.write_bytes(files[0].read_bytes())
    new.rename(files[0])  # the same bytes, but another file: the index is made again, and the identity stays
    assert TFRecordSource(files, record="bytes", fields=BYTES).content_digest() == digest
    assert made == [*files, files[0]]
    for path in kept.glob("tfrecord/index/*/index-*"):
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)
    batch = taken(TFRecordSource(files, record="bytes", fields=BYTES), [149])
    assert batch["x"][0, : batch["n"][0]].tobytes() == RECORDS[149]
    assert made == [*files, files[0], *files]


def test_a_large_index_is_mapped(files, monkeypatch):
    from mixserve.sources import kept_index

    monkeypatch.setattr(kept_index, "_SMALL_BYTES", 100)
    expected = taken(TFRecordSource(files, record="bytes", fields=BYTES), range(150))
    source = TFRecordSource(files, record="bytes", fields=BYTES)
    assert isinstance(source._store._records._border[1].__self__.base, np.memmap)
    np.testing.assert_array_equal(taken(source, range(150))["x"], expected["x"])


def test_without_a_folder_the_index_is_in_memory(files, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with preparing_in(tmp_path / "file"):
        source = TFRecordSource(files, record="bytes", fields=BYTES)
    assert len(source) == 150
    assert f"the index of {files[0]} is in memory alone" in caplog.messages[0]


def test_a_pickle_keeps_its_index_in_the_same_folder(files, tmp_path, kept):
    source = TFRecordSource(files, record="bytes", fields=BYTES)
    with preparing_in(tmp_path / "elsewhere"):
        again = pickle.loads(pickle.dumps(source))
    assert len(again) == 150
    assert not (tmp_path / "elsewhere").exists()


def refusal(path: Path, content: bytes, ids=(0,)) -> str:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)..") as raised:
        taken(TFRecordSource(path, record="bytes", fields=BYTES), ids)
    return str(raised.value)


def test_what_is_no_whole_tfrecord_file_is_refused(tmp_path):
    path, whole = tmp_path / "x", tfrecord(RECORDS)
    assert refusal(path, b"") == "the files have no records"
    for size in (1, 11, 12, 15):
        assert refusal(path, tfrecord([b""])[:size]) == f"{path} ends within the record 0: it is cut"
    assert refusal(path, whole[:-1]) == f"{path} ends within the record 149: it is cut"
    last = len(whole) - len(RECORDS[-1]) - 16
    assert refusal(path, whole[: last + 7]) == f"{path} ends within the record 149: it is cut"
    assert refusal(path, gzip.compress(whole)).startswith(f"{path} is a TFRecord file compressed as a whole (GZIP)")
    assert "(ZLIB)" in refusal(path, zlib.compress(whole))
    assert "is not a TFRecord file" in refusal(path, bytes(100))
    assert "is not a TFRecord file" in refusal(path, b"PK\3\4" * 100)
    damaged = bytearray(whole)
    damaged[last + 3] = 1  # a length of 16 MB more
    assert refusal(path, damaged).startswith(f"{path}, record 149: the file is damaged at byte {last:,}: the checksum")
    with pytest.raises(FileNotFoundError, match="gone"):
        TFRecordSource(tmp_path / "gone")


def test_a_length_that_leads_to_a_head_elsewhere_is_noticed(tmp_path):
    # A wrong length of the record 0 whose next head is again one: only the checksum of its own head tells.
    content = bytearray(tfrecord([b"a" * 10, b"b" * 10, b"c"]))
    content[:8] = struct.pack("<Q", 10 + 26)
    assert "does not begin with a length and its checksum" in refusal(tmp_path / "x", content)


def test_damaged_data_is_noticed(tmp_path):
    path, content = tmp_path / "x", bytearray(tfrecord(RECORDS))
    begin = sum(len(record) + 16 for record in RECORDS[:50])
    content[begin + 20] ^= 1
    said = refusal(path, content, range(150))
    assert said == f"{path}, record 50: the record is damaged: its checksum is not that of its data"


def test_without_the_checksums_library_a_warning_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "google_crc32c", None)
    (tmp_path / "x").write_bytes(tfrecord(RECORDS))
    batch = taken(TFRecordSource(tmp_path / "x", record="bytes", fields=BYTES), [3])
    assert batch["x"][0, : batch["n"][0]].tobytes() == RECORDS[3]
    assert caplog.messages == [
        f"the checksums of the records of {tmp_path / 'x'} are not checked: pip install 'mixserve[tfrecord]'"
    ]


def test_files_that_change_after_opening_are_refused(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(tfrecord(RECORDS))
    source = TFRecordSource(path, record="bytes", fields=BYTES)
    os.truncate(path, 1000)
    with pytest.raises(SourceChanged, match=f"{path} has 1,000 bytes now"):
        taken(source, [149])
    path.unlink()
    path.write_bytes(tfrecord(RECORDS))
    source = TFRecordSource(path, record="bytes", fields=BYTES)
    with path.open("r+b") as file:  # rewritten in place, with the same size
        file.write(tfrecord(RECORDS[::-1]))
    with pytest.raises((SourceChanged, WrongRecord), match=str(path)):
        taken(source, range(150))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_threads_and_a_forked_child_read_the_same(files):
    source = TFRecordSource(files, record="bytes", fields=BYTES)
    expected = taken(source, range(150))["x"]
    wrong: list[object] = []

    def work() -> None:
        for seed in range(10):
            ids = np.random.default_rng(seed).integers(0, 150, 64)
            if not np.array_equal(source.take(ids)["x"], expected[ids]):
                wrong.append(ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert in_a_fork(lambda: (work(), len(wrong))[1]) == "0"
    for thread in threads:
        thread.join()
    assert not wrong
