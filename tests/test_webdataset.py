"""WebDataset's tar files, beside Python's own reader of tar files."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import WebDatasetSource
from mixserve.error_boundary import WrongRecord
from mixserve.sources import tar_index
from mixserve.sources.fields import FieldSpec
from mixserve.sources.open_file import OpenFile
from mixserve.sources.prepared import preparing_in
from mixserve.sources.tar_index import index_tar, pack_index, unpack_index
from mixserve_client.errors import SourceChanged
from tests.profiles import examples
from tests.records import taken

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
FIELDS = [FieldSpec("x", "bin", None, 3000, lengths="n"), FieldSpec("label", "cls", np.dtype(np.int32))]
RNG = random.Random(0)
SAMPLES = [(f"{number:04}", RNG.randbytes(RNG.randrange(3000)), number - 60) for number in range(120)]


@pytest.fixture(autouse=True)
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with preparing_in(folder):
        yield folder


def tar(members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def members(samples: Iterable[tuple[str, bytes, int]]) -> list[tuple[str, bytes]]:
    return [one for key, data, label in samples for one in ((f"{key}.bin", data), (f"{key}.cls", str(label).encode()))]


@pytest.fixture
def files(tmp_path) -> list[Path]:
    parts = [SAMPLES[:1], SAMPLES[1:70], [], SAMPLES[70:]]
    for number, part in enumerate(parts):
        (tmp_path / f"{number}.tar").write_bytes(tar(members(part), FORMATS[number % 3]))
    return sorted(tmp_path.iterdir())


def by_tarfile(path: Path) -> list[dict[str, bytes]]:
    """The samples as WebDataset groups them."""
    samples: list[dict[str, bytes]] = []
    last = None
    with tarfile.open(path) as archive:
        for member in archive:
            folder, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            is_meta = any(part.startswith("__") and part.endswith("__") for part in member.name.split("/"))
            if not member.isreg() or not stem or not extension or is_meta:
                continue
            if folder + slash + stem != last:
                samples.append({})
                last = folder + slash + stem
            file = archive.extractfile(member)
            assert file is not None
            samples[-1][extension.lower()] = file.read()
    return samples


def indexed(path: Path) -> list[dict[str, bytes]]:
    file = OpenFile(path)
    index = unpack_index(pack_index(index_tar(file)))
    return [
        {name: file.read(*place) for name, place in zip(index.names, row, strict=True) if place[0] >= 0}
        for row in index.table.tolist()
    ]


def test_samples_are_those_of_the_tar_files(files):
    expected = [sample for path in files for sample in by_tarfile(path)]
    assert len(expected) == 120
    source = WebDatasetSource(files, fields=FIELDS)
    ids = [119, 0, 70, 69, 0, *range(120)]
    batch = taken(source, ids)
    for row, size, label, record_id in zip(batch["x"], batch["n"], batch["label"], ids, strict=True):
        assert row[:size].tobytes() == expected[record_id]["bin"]
        assert label == int(expected[record_id]["cls"])
    assert batch["label"].dtype == np.int32
    assert source.locate(71) == f"{files[3]}, sample 1 ('0071.bin')"
    source.prefetch(np.arange(120))
    again = pickle.loads(pickle.dumps(source))
    assert again.content_digest() == source.content_digest()
    np.testing.assert_array_equal(taken(again, ids)["x"], batch["x"])


STRANGE = [
    ("./a/b.txt", b"1"),
    ("./a/b.seg.PNG", b"2"),
    ("no extension", b"3"),
    (".hidden.txt", b"4"),
    ("a/.hidden", b"4"),
    ("__meta__/a.json", b"{}"),
    ("__meta__", b"{}"),
    ("a.b/c.txt", b"5"),
    ("a.b/cd", b"5"),
    ("é/ü.txt", "ü".encode()),
    ("d" * 60 + "/" + "e" * 90 + ".txt", b"6" * 511),
    ("d" * 60 + "/" + "e" * 90 + ".cls", b"6" * 512),
    ("f.txt", b""),
]


@pytest.mark.parametrize("form", FORMATS)
def test_names_of_every_kind(tmp_path, form):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as archive:
        for kind, name in ((tarfile.DIRTYPE, "a.dir"), (tarfile.SYMTYPE, "b.txt"), (tarfile.LNKTYPE, "c.txt")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "l" * (150 if form != tarfile.USTAR_FORMAT else 90)
            archive.addfile(info)
    with tarfile.open(path, "a", format=form) as archive:
        long = ("g" * 150 + "/" + "h" * 200 + ".txt", b"7" * 513)
        for name, content in STRANGE + ([long] if form != tarfile.USTAR_FORMAT else []):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    found = indexed(path)
    assert found == by_tarfile(path)
    assert {"txt": b"1", "seg.png": b"2"} in found
    assert len(found) == (6 if form != tarfile.USTAR_FORMAT else 5)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.integers(0, 2000)), max_size=20),
    st.integers(512, 2048),
    st.integers(512, 1024),
    st.integers(0, 1500),
    st.sampled_from(FORMATS),
)
@settings(max_examples=examples(40))
def test_an_index_is_the_same_for_all_blocks(tmp_path_factory, chosen, block, after_long, long, form):
    names, listed = set(), []
    for number, (key, extension, size) in enumerate(chosen):
        name = f"{number // 2}-{key}.{extension}"
        if name not in names:
            names.add(name)
            listed.append((name, bytes([number]) * size))
    path = tmp_path_factory.getbasetemp() / "indexed.tar"
    path.write_bytes(tar(listed, form))
    limits = tar_index._READ_BYTES, tar_index._READ_AFTER_LONG, tar_index._LONG_BYTES
    tar_index._READ_BYTES, tar_index._READ_AFTER_LONG, tar_index._LONG_BYTES = block, after_long, long
    try:
        assert indexed(path) == by_tarfile(path)
    finally:
        tar_index._READ_BYTES, tar_index._READ_AFTER_LONG, tar_index._LONG_BYTES = limits


def with_header(content: bytes, at: int, place: int, data: bytes) -> bytes:
    """The archive with other bytes in the header at `at`, whose checksum is right again."""
    head = bytearray(content[at : at + 512])
    head[place : place + len(data)] = data
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return content[:at] + head + content[at + 512 :]


def test_sizes_in_base_256_and_signed_checksums(tmp_path):
    path, content = tmp_path / "x.tar", tar([("é.txt", b"12345"), ("b.txt", b"1")], tarfile.GNU_FORMAT)
    path.write_bytes(with_header(content, 0, 124, b"\x80" + (5).to_bytes(11, "big")))
    assert indexed(path) == by_tarfile(path) == [{"txt": b"12345"}, {"txt": b"1"}]
    path.write_bytes(with_header(content, 0, 124, b"\xff" * 12))
    with pytest.raises(ValueError, match="it has no size there"):
        index_tar(OpenFile(path))
    head = bytearray(content[:512])
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % (sum(head) - 256 * sum(byte >= 128 for byte in head))
    path.write_bytes(head + content[512:])
    assert indexed(path) == by_tarfile(path)


def test_a_size_in_an_extended_header_counts(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.txt")
        info.size, info.pax_headers = 700, {"size": "700", "comment": "é\nb"}
        archive.addfile(info, io.BytesIO(b"1" * 700))
        archive.addfile(tarfile.TarInfo("b.txt"))
    content = path.read_bytes()
    path.write_bytes(with_header(content, 1024, 124, b"00000000000\0"))
    assert indexed(path) == by_tarfile(path) == [{"txt": b"1" * 700}, {"txt": b""}]


def test_a_global_header_is_read_over(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "c" * 600}) as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    assert indexed(path) == [{"txt": b""}]


def refusal(path: Path, content: bytes, fields=FIELDS, ids=None) -> str:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)..") as raised:
        source = WebDatasetSource(path, fields=fields)
        taken(source, range(len(source)) if ids is None else ids)
    return str(raised.value)


def test_what_is_no_whole_tar_file_is_refused(tmp_path):
    path, whole = tmp_path / "x.tar", tar(members(SAMPLES))
    for compress, name in ((gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")):
        assert refusal(path, compress(whole)).startswith(f"{path} is compressed ({name})")
    assert refusal(path, b"") == f"{path} is not a tar file: it has 0 bytes"
    assert refusal(path, b"PK\3\4" * 300) == f"{path} is not a tar file"
    assert refusal(path, bytes(10240)) == "the files have no records"
    assert "ends within the member '0000.bin': it is cut" in refusal(path, whole[:600])
    first = 512 + -(-len(SAMPLES[0][1]) // 512) * 512
    # At the border of two members Python's own reader says nothing.
    assert refusal(path, whole[:first]) == f"{path} has no end mark: it is cut, or is not a tar file"
    assert refusal(path, whole[: first + 100]).endswith("has no end mark: it is cut, or is not a tar file")
    damaged = bytearray(whole)
    damaged[first + 20] ^= 1
    assert refusal(path, damaged) == f"{path} is damaged at byte {first:,}: no header of a member is there"
    assert "goes on after its end mark" in refusal(path, whole + whole)
    assert "a sparse file at byte 0" in refusal(path, with_header(whole, 0, 156, b"S"))
    with pytest.raises(FileNotFoundError, match="gone"):
        WebDatasetSource(tmp_path / "gone.tar")


def test_samples_that_lack_a_field_or_have_it_twice(tmp_path):
    path = tmp_path / "x.tar"
    content = tar([*members(SAMPLES[:3]), ("lone.bin", b"1"), ("other.txt", b"1")])
    assert refusal(path, content) == (
        f"{path}, sample 4 ('other.txt'): the sample lacks the field 'bin', as do 0 others of the file; give the field "
        "a default, or leave them out"
    )
    fields = [FieldSpec("x", "bin", None, 3000, default=()), FieldSpec("label", "cls", default=-1)]
    assert taken(WebDatasetSource(path, fields=fields), [2, 3, 4])["label"].tolist() == [-58, -1, -1]
    assert "has the member 'a.txt' twice in one sample" in refusal(path, tar([("a.txt", b""), ("a.txt", b"")]))
    # A key that comes again in another file, or later in the same one, is another sample.
    (tmp_path / "y.tar").write_bytes(tar([("a.cls", b"1"), ("b.cls", b"2"), ("a.cls", b"3")]))
    twice = WebDatasetSource([tmp_path / "y.tar", tmp_path / "y.tar"])
    assert taken(twice, range(6))["cls"].tolist() == [1, 2, 3] * 2
    (tmp_path / "z.tar").write_bytes(tar([("a.txt", b"1")]))
    with pytest.raises(ValueError, match=r"z\.tar, sample 0 \('a.txt'\): the sample lacks the field 'cls'"):
        WebDatasetSource([tmp_path / "y.tar", tmp_path / "z.tar"])


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_members_are_decoded_by_their_extension(tmp_path):
    path = tmp_path / "x.tar"
    listed = []
    for number in range(3):
        listed += [
            (f"{number}.cls", b"%d\n" % number),
            (f"{number}.emb.npy", npy(np.full((2,), number, np.float32))),
            (f"{number}.ids.npy", npy(np.arange(number, dtype=np.uint16))),
            (f"{number}.box.json", json.dumps([number, 0.5]).encode()),
            (f"{number}.meta.json", json.dumps({"a": number}).encode()),
            (f"{number}.jpg", bytes(number)),
            (f"{number}.fixed", b"abc"),
        ]
    path.write_bytes(tar(listed))
    assert repr(WebDatasetSource(path)) == (
        "WebDatasetSource({box.json: float64[2], cls: int64[], emb.npy: float32[2], ids.npy: uint16[0]}, length=3)"
    )
    fields = [
        FieldSpec("cls", "cls", np.dtype(np.int8)),
        FieldSpec("emb", "emb.npy"),
        FieldSpec("ids", "ids.npy", None, 2, lengths="n"),
        FieldSpec("box", "box.json", np.dtype(np.float32)),
        FieldSpec("jpg", "jpg", None, 2),
        FieldSpec("fixed", "fixed"),
    ]
    batch = taken(WebDatasetSource(path, fields=fields), [2, 1])
    assert batch["cls"].tolist() == [2, 1]
    assert batch["emb"].tolist() == [[2, 2], [1, 1]]
    assert (batch["ids"].tolist(), batch["n"].tolist()) == ([[0, 1], [0, 0]], [2, 1])
    assert (batch["box"].dtype, batch["box"].tolist()) == (np.float32, [[2, 0.5], [1, 0.5]])
    assert batch["jpg"].shape == (2, 2)
    assert batch["fixed"].tobytes() == b"abcabc"
    said = refusal(path, tar(listed), [FieldSpec("m", "meta.json")])
    assert "the field 'meta.json' cannot be served: must be numbers" in said
    assert "must be a decimal number of 64 bits, got b'x'" in refusal(path, tar([("a.cls", b"x")]), None)
    assert "do not all fit into as: int8" in refusal(path, tar([("a.cls", b"300")]), fields[:1])
    assert "is not an .npy array" in refusal(path, tar([("a.npy", b"300")]), None)


def test_a_file_that_is_cut_later_is_refused(files):
    source = WebDatasetSource(files, fields=FIELDS)
    os.truncate(files[3], 5000)
    assert taken(source, [1])["label"].tolist() == [-59]
    with pytest.raises(SourceChanged, match=rf"{files[3]} has 5,000 bytes now"):
        taken(source, [119])


def test_a_number_that_is_none_names_the_sample(tmp_path):
    path = tmp_path / "x.tar"
    for number in (b"one", b"4_5"):
        path.write_bytes(tar([("a.cls", b"1"), ("b.cls", number)]))
        with pytest.raises(
            WrongRecord, match=r"x\.tar, sample 1 \('b.cls'\): the field 'cls' must be a decimal number"
        ):
            taken(WebDatasetSource(path), [0, 1])


def test_threads_read_the_same(files):
    source = WebDatasetSource(files, fields=FIELDS)
    expected = taken(source, range(120))["x"]
    wrong: list[object] = []

    def work() -> None:
        for seed in range(10):
            ids = np.random.default_rng(seed).integers(0, 120, 64)
            if not np.array_equal(source.take(ids)["x"], expected[ids]):
                wrong.append(ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_names_with_dots_do_not_fill_the_memory(tmp_path, monkeypatch):
    """Each of 3,000 samples has an extension of its own: a place for each of them in each sample would be 144 MB."""
    monkeypatch.setattr(tar_index, "_FEW_CELLS", 1 << 16)
    path = tmp_path / "dots.tar"
    path.write_bytes(tar((f"{number:06}.17{number:06}.jpg", b"") for number in range(3000)))
    said = r"3,000 different extensions in 3,000 samples, such as 17000000.jpg, .* first dot of a member's name"
    with pytest.raises(ValueError, match=said):
        WebDatasetSource(path)


def test_many_extensions_of_one_sample_are_served(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "_FEW_CELLS", 0)
    path = tmp_path / "frames.tar"
    path.write_bytes(tar((f"{number:03}.{frame}.bin", bytes([frame])) for number in range(4) for frame in range(50)))
    source = WebDatasetSource(path, fields=[FieldSpec("x", "49.bin", None, 1)])
    assert taken(source, [2])["x"].tolist() == [[49]]


def index_file(folder: Path) -> Path:
    (found,) = folder.glob("webdataset/index/*/index-*")
    return found


def test_a_large_index_that_is_damaged_is_made_again(files, kept, monkeypatch, caplog):
    from mixserve.sources import kept_index

    monkeypatch.setattr(kept_index, "_SMALL_BYTES", 100)
    files[0].write_bytes(tar(members(SAMPLES)))
    expected = taken(WebDatasetSource(files[0], fields=FIELDS), range(120))
    path = index_file(kept)
    content = bytearray(path.read_bytes())
    at = len(content) - 32 - 8 * 4 * 3  # the byte at which a member begins, of a sample near the end
    content[at : at + 8] = (int.from_bytes(content[at : at + 8], "little") - 512).to_bytes(8, "little")
    path.write_bytes(content)
    source = WebDatasetSource(files[0], fields=FIELDS)
    assert "is damaged; it is made again" in caplog.text
    np.testing.assert_array_equal(taken(source, range(120))["x"], expected["x"])
    assert path.read_bytes() != bytes(content)


def test_an_index_replaces_that_of_the_file_before(files, kept):
    for size in range(1, 4):
        files[0].write_bytes(tar(members(SAMPLES[:size])))
        assert len(WebDatasetSource(files[0], fields=FIELDS)) == size
        assert len(list(kept.glob("webdataset/index/*/*"))) == 1


def test_two_that_find_the_same_damaged_index_both_get_it(files, kept):
    WebDatasetSource(files[0], fields=FIELDS)
    for _ in range(20):
        path = index_file(kept)
        path.write_bytes(b"\0" * 40)
        barrier, found = threading.Barrier(2), list[object]()

        def read(barrier: threading.Barrier = barrier, found: list[object] = found) -> None:
            barrier.wait()
            with preparing_in(kept):
                try:
                    found.append(len(WebDatasetSource(files[0], fields=FIELDS)))
                except BaseException as error:
                    found.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [len(WebDatasetSource(files[0], fields=FIELDS))] * 2
