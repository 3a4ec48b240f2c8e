"""Files of tokens: headers that are read, files that are refused, and windows that overlap or stay in their file."""

import base64
import gzip
import io
import lzma
import pickle
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, TokenSource
from mixserve.descriptors import allow_many_files
from mixserve.mixture.rows import Rows
from mixserve.sources.location import locate
from mixserve.sources.open_file import file_of
from mixserve.sources.token_files import _is_gzip
from tests.processes import ONE_SIZE
from tests.profiles import examples
from tests.test_cli import run

IDS = np.random.default_rng(0).integers(0, 50_000, 1000)
LLM_C = {np.dtype(np.uint16): (20240520, 1), np.dtype(np.uint32): (20240801, 7)}


def llm_c(ids: np.ndarray, count: int | None = None) -> bytes:
    """A file as the scripts of llm.c write it."""
    head = np.zeros(256, "<i4")
    head[:3] = *LLM_C[ids.dtype], len(ids) if count is None else count
    return head.tobytes() + ids.tobytes()


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


def source_of(path: Path, content: bytes, **options) -> TokenSource:
    path.write_bytes(content)
    return TokenSource(path, **{"sequence_length": 10} | options)


def all_of(source: TokenSource) -> np.ndarray:
    return source.take(np.arange(len(source)))["tokens"]


OLD_PICKLE = (
    "gASVzwIAAAAAAACMHW1peHNlcnZlLnNvdXJjZXMudG9rZW5fc291cmNllIwLVG9rZW5Tb3VyY2WUk5QpgZR9lCiMBG5hbWWUjANvbGSUjAZf"
    "ZmllbGSUjAZ0b2tlbnOUjAlfYXNfZHR5cGWUjAVudW1weZSMBWR0eXBllJOUjAJpNJSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sAdJRi"
    "jAdfaW5wdXRzlF2UKIwHaW5wdXQgMJRLBYaUjAdpbnB1dCAxlEsGhpRljAhfd2luZG93c5RdlCiMFm51bXB5Ll9jb3JlLm11bHRpYXJyYXmU"
    "jAxfcmVjb25zdHJ1Y3SUk5RoCowHbmRhcnJheZSTlEsAhZRDAWKUh5RSlChLAUsBSwSGlGgMjAJ1MpSJiIeUUpQoSwNoEE5OTkr/////Sv//"
    "//9LAHSUYolDCAAAAQACAAMAlHSUYmgcaB5LAIWUaCCHlFKUKEsBSwFLBIaUaCaJQwgEAAAAAQACAJR0lGJljAVfcm93c5SMHW1peHNlcnZl"
    "LnNvdXJjZXMuYXJyYXlfc291cmNllIwLQXJyYXlTb3VyY2WUk5QpgZR9lChoBU6MCF9vcmlnaW5zlCmMB19ibG9ja3OUfZRoCGgic32UaAho"
    "LHOGlIwHX3N0YXJ0c5RoHGgeSwCFlGggh5RSlChLAUsDhZRoDIwCaTiUiYiHlFKUKEsDaBBOTk5K/////0r/////SwB0lGKJQxgAAAAAAAAA"
    "AAEAAAAAAAAAAgAAAAAAAACUdJRijAVfc3BlY5R9lGgIjANqYXiUjBBTaGFwZUR0eXBlU3RydWN0lJOUKYGUTn2UKIwFc2hhcGWUSwSFlIwF"
    "ZHR5cGWUaCaMCV9zaGFyZGluZ5ROjARfZGxslE6MCXdlYWtfdHlwZZSJjBBtYW51YWxfYXhpc190eXBllE6MBmlzX3JlZpSJdYaUYnN1YnVi"
    "Lg=="
)


# Written by this class before it had these options.
@pytest.mark.parametrize(
    ("tokens", "options", "digest"),
    [
        (np.arange(1000, dtype=np.uint16), {"sequence_length": 7}, "5f3cf2e74588e5ce"),
        (
            np.split(np.arange(777, dtype=np.uint16), [10, 13, 500, 500]),
            {"sequence_length": 16, "field": "ids"},
            "ab0cd64c41a2c315",
        ),
        (np.arange(500, dtype=np.int32), {"sequence_length": 500, "as_dtype": "int64"}, "ef732489c446431952bb"),
        (
            np.split(np.arange(40 << 20, dtype=np.uint32), [9_000_001]),
            {"sequence_length": 1000},
            "603a6ddea5594d10323a",
        ),
    ],
)
def test_the_digest_of_plain_windows_stays(tokens, options, digest):
    assert TokenSource(tokens, **options).content_digest().hex().startswith(digest)


def test_the_digest_sees_how_windows_are_cut():
    parts = np.split(np.arange(777, dtype=np.uint16), [10, 13, 500])
    ways = ({}, {"overlap": 1}, {"overlap": 2}, {"windows": "per_file"}, {"windows": "per_file", "overlap": 1})
    assert len({TokenSource(parts, sequence_length=16, **way).content_digest() for way in ways}) == 5
    assert len({TokenSource(parts[3], sequence_length=16, **way).content_digest() for way in ways}) == 3


def test_a_pickle_of_the_class_before_is_read():
    # TokenSource([arange(5), arange(6)] as uint16, sequence_length=4, as_dtype="int32", name="old")
    source = pickle.loads(base64.b64decode(OLD_PICKLE))
    assert all_of(source).tolist() == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert (source.name, repr(source)) == ("old", "TokenSource(tokens: int32[4], length=2)")
    assert locate(source, 1) == "input 0, token 4"
    assert len(source.blocks()) == 2
    again = pickle.loads(pickle.dumps(source))
    assert again.content_digest() == source.content_digest()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("header", ["auto", "llm.c"])
def test_headers_of_llm_c_are_read(tmp_path, dtype, header):
    ids = IDS.astype(dtype)
    _, version = LLM_C[ids.dtype]
    for stored in (None, dtype):
        source = source_of(tmp_path / "a.bin", llm_c(ids), dtype=stored, header=header)
        assert all_of(source).reshape(-1).tolist() == ids.tolist()
        assert source.element_spec()["tokens"].dtype == dtype
        assert locate(source, 3) == f"{tmp_path / 'a.bin'}, token 30"
        assert file_of(source.blocks()[0]["tokens"])[1] == 1024
    assert (
        all_of(source_of(tmp_path / "a.bin", llm_c(ids), dtype=dtype, header="none"))[0, 4 // ids.itemsize] == version
    )


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_headers_of_npy_files_are_read(tmp_path, dtype):
    ids = IDS.astype(dtype)
    for version in ((1, 0), (2, 0), (3, 0)):
        for header in ("auto", "npy"):
            source = source_of(tmp_path / "a.npy", npy(ids, version), header=header)
            assert all_of(source).reshape(-1).tolist() == ids.tolist()
            assert source.element_spec()["tokens"].dtype == ids.dtype
    # What many call .npy is plain ids.
    assert all_of(source_of(tmp_path / "a.npy", ids.tobytes(), dtype=dtype)).reshape(-1).tolist() == ids.tolist()


def test_files_with_and_without_headers_join(tmp_path):
    ids = IDS.astype(np.uint16)
    for name, content in (("a", llm_c(ids[:333])), ("b", ids[333:335].tobytes()), ("c", npy(ids[335:]))):
        (tmp_path / name).write_bytes(content)
    source = TokenSource([tmp_path / name for name in "abc"], sequence_length=10, dtype="uint16")
    assert all_of(source).reshape(-1).tolist() == ids.tolist()


U16 = IDS.astype(np.uint16)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (
            llm_c(U16)[:-2],
            {},
            r"header of llm.c that announces 1,000 ids of uint16, which makes 3,024 bytes, and has",
        ),
        (llm_c(U16) + b"\0\0", {}, r"3,024 bytes, and has 3,026: it was cut or changed.*header: none"),
        (llm_c(U16, -1), {}, "announces -1 ids"),
        (llm_c(U16)[:500], {}, "3,024 bytes, and has 500"),
        (llm_c(U16), {"dtype": "uint32"}, "says that its ids are uint16, and dtype is uint32: leave dtype out"),
        (llm_c(U16), {"header": "npy"}, r"does not begin with a header of npy, but with b'\\x88\\xd84"),
        (U16.tobytes(), {"header": "llm.c"}, "does not begin with a header of llm.c"),
        (b"", {"header": "llm.c"}, "does not begin with a header of llm.c, but with b''"),
        (npy(U16), {"header": "llm.c"}, "does not begin with a header of llm.c"),
        (npy(U16)[:-1], {}, "header of npy that announces 1,000 ids of uint16, which makes 2,128 bytes, and has 2,127"),
        (npy(U16)[:40], {}, r"the header of the .npy file .*a.bin cannot be read"),
        (npy(U16)[:8] + b"\xff" * 200, {}, r"the header of the .npy file .*a.bin cannot be read"),
        (npy(U16.reshape(2, 500)), {}, r"an .npy file of the shape \(2, 500\).*kind: arrays"),
        (npy(U16.astype(">u2")), {}, "the .npy file .*a.bin cannot be served: .*little-endian"),
        (npy(U16.astype(np.float32)), {}, "an .npy file of float32, and token ids are integers"),
        (npy(np.array(["a", {}], object)), {}, "the .npy file .*a.bin cannot be served"),
        (npy(U16), {"dtype": "uint32"}, "says that its ids are uint16, and dtype is uint32"),
        (U16.tobytes(), {"dtype": None}, "dtype is required for token files without a header"),
    ],
)
def test_headers_that_do_not_fit_the_file_are_refused(tmp_path, content, options, said):
    with pytest.raises(ValueError, match=said) as raised:
        source_of(tmp_path / "a.bin", content, **options)
    assert "a.bin" in str(raised.value)


def arrow(stream: bool) -> bytes:
    """A table as `pyarrow` writes it, shortened."""
    message = bytes.fromhex("ffffffff78000000100000000000 0a000c00060005000800 0a000000".replace(" ", ""))
    return message + b"\0" * 200 if stream else b"ARROW1\0\0" + message + b"ARROW1"


def array_record(folder: Path) -> bytes:
    writer = array_record_module.ArrayRecordWriter(str(folder / "x.array_record"), "group_size:1")
    writer.write(b"record")
    writer.close()
    return (folder / "x.array_record").read_bytes()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("x.npy", b"x")
    return stream.getvalue()


FOREIGN = {
    "gzip": (lambda _: gzip.compress(U16.tobytes()), "compressed by gzip, not token ids: decompress it"),
    "short gzip": (lambda _: gzip.compress(b""), "compressed by gzip"),
    "long gzip, cut": (lambda _: gzip.compress(IDS.tobytes() * 99)[:20_000], "compressed by gzip"),
    "zip": (lambda _: zipped(), "a zip archive, as .npz and .pt files are, not token ids: kind: arrays"),
    "html": (lambda _: b"\n <!DOCTYPE HTML>\n<html>...", "a web page or an XML document"),
    "html without a type": (lambda _: b"\xef\xbb\xbf<HTML lang=en>..", "a web page or an XML document"),
    "xml": (lambda _: b'<?xml version="1.0"?><Error><Code>AccessDenied', "a server's answer was probably saved"),
    "lfs": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
        "LFS pointer.*git lfs pull",
    ),
    "parquet": (lambda _: b"PAR1" + bytes(20) + b"PAR1", "a Parquet file, not token ids: kind: parquet"),
    "arrow": (lambda _: arrow(stream=False), "an Arrow file"),
    "arrow stream": (lambda _: arrow(stream=True), "an Arrow stream"),
    "array_record": (array_record, "an ArrayRecord or Riegeli file.*kind: array_record"),
    "hdf5": (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
    "zstd": (lambda _: b"\x28\xb5\x2f\xfd" + bytes(20), "compressed by zstd"),
    "xz": (lambda _: lzma.compress(U16.tobytes()), "compressed by xz"),
    "megatron": (lambda _: b"MMIDIDX\0\0" + bytes(25), "the index of a Megatron data set.*kind: megatron"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_token_file_is_refused_by_name(tmp_path, name):
    make, said = FOREIGN[name]
    content = make(tmp_path)
    content += bytes(-len(content) % 2)  # so that the size is that of whole ids
    with pytest.raises(ValueError, match=rf"a.bin is .*{said}.*If its bytes are ids, say header: none"):
        source_of(tmp_path / "a.bin", content, dtype="uint16")
    source = source_of(tmp_path / "a.bin", content, dtype="uint16", header="none", sequence_length=5)
    assert all_of(source)[0].tobytes() == content[:10]


def test_ids_that_look_like_other_files_at_first_are_read(tmp_path):
    gzip_head = np.frombuffer(b"\x1f\x8b\x08\x00", np.uint16)
    for ids in (
        np.concatenate([gzip_head, U16]),
        np.concatenate([[0xFFFF, 0xFFFF, 304, 0, 16, 0], U16]).astype(np.uint16),
        np.frombuffer(b"<htm", np.uint16).repeat(20),
        np.frombuffer(gzip.compress(U16.tobytes())[:16], np.uint16),  # too short to be sure
        np.array([20240520], np.uint32).view(np.uint16),  # no room for a header
    ):
        source = source_of(tmp_path / "a.bin", ids.tobytes(), dtype="uint16", sequence_length=2)
        assert all_of(source).reshape(-1).tolist() == ids[: len(ids) // 2 * 2].tolist()


def test_random_bytes_are_not_taken_for_gzip():
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000)).astype(np.uint8)
    noise[:, :3] = 0x1F, 0x8B, 8
    noise[:, 3] &= 0x1F  # the other bits are reserved
    assert not any(_is_gzip(row.tobytes()) for row in noise)


@given(st.lists(st.integers(0, 25), min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 11), st.booleans())
@settings(max_examples=examples(100))
def test_windows_are_those_of_the_definition(lengths, length, overlap, joined):
    overlap %= length
    ids = np.arange(sum(lengths), dtype=np.uint16)
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    flat = [ids] if joined else parts
    stride = length - overlap
    expected = [part[at : at + length].tolist() for part in flat for at in range(0, len(part) - length + 1, stride)]
    options = {"sequence_length": length, "overlap": overlap, "windows": "joined" if joined else "per_file"}
    if not expected:
        with pytest.raises(ValueError, match="less than one window"):
            TokenSource(parts, **options)
        return
    source = TokenSource(parts, **options)
    assert all_of(source).tolist() == expected
    blocks = [block["tokens"] for block in source.blocks()]
    assert np.concatenate(blocks).tolist() == expected
    out = np.empty((len(expected), length), np.uint16)
    sizes = np.array([len(block) for block in blocks])
    block_ids = np.repeat(np.arange(len(blocks)), sizes)
    Rows(blocks).copy_into(out, block_ids, np.arange(len(out)) - (np.cumsum(sizes) - sizes)[block_ids])
    assert out.tolist() == expected
    for record, row in enumerate(expected):
        number, token = map(int, re.fullmatch(r"input (\d+), token (\d+)", locate(source, record)).groups())
        assert parts[number][token] == row[0]


def test_overlapping_windows_are_views_of_the_file(tmp_path):
    source = source_of(tmp_path / "a.bin", U16.tobytes(), dtype="uint16", sequence_length=11, overlap=1)
    (block,) = (block["tokens"] for block in source.blocks())
    assert block.strides == (20, 2)
    file, offset = file_of(block)
    assert (file.path, offset) == (tmp_path / "a.bin", 0)
    assert not block.flags.writeable
    source.prefetch(np.array([0, len(source) - 1]))


def test_windows_across_borders_are_small_copies(tmp_path):
    for name, ids in (("a", U16[:505]), ("b", U16[505:])):
        (tmp_path / name).write_bytes(ids.tobytes())
    paths = [tmp_path / "a", tmp_path / "b"]
    for options, copied in (({}, 1), ({"overlap": 9}, 9), ({"windows": "per_file"}, 0)):
        blocks = TokenSource(paths, sequence_length=10, dtype="uint16", **options).blocks()
        assert sum(len(block["tokens"]) for block in blocks if file_of(block["tokens"]) is None) == copied
        assert len(blocks) == (3 if copied else 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overlap": 10}, r"overlap must be an integer in 0\.\.9, got 10"),
        ({"overlap": -1}, r"overlap must be an integer in 0\.\.9, got -1"),
        ({"windows": "files"}, "windows must be one of 'joined', 'per_file', got 'files'"),
        ({"header": "npz"}, "header must be one of 'auto', 'none', 'llm.c', 'npy', got 'npz'"),
        ({"header": None}, "header must be one of .*, got None"),
        ({"vocab_size": 0}, "vocab_size must be an integer of at least 1, got 0"),
        (
            {"vocab_size": 49_000},
            r"vocab_size: ids must be in \[0, 49,000\), got \d+ \(input 0, token \d+ and \d+ tokens",
        ),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        TokenSource(U16, **{"sequence_length": 10} | options)


def test_the_largest_id_of_a_sample_and_of_all():
    ids = np.zeros(50_000_000, np.uint16)
    ids[12_345_678] = 9
    for options in ({}, {"overlap": 1}):
        source = TokenSource(ids, sequence_length=1000, vocab_size=9, **options)
        assert source.largest_id() == 0
        with pytest.raises(ValueError, match=r"in \[0, 9\), got 9 \(input 0, token 12,34\d,\d+ and \d+ tokens on\)"):
            source.largest_id(full=True)
        assert TokenSource(ids, sequence_length=1000, **options).largest_id(full=True) == 9
    with pytest.raises(ValueError, match=r"got -1 \(input 0, token 0 and 3 tokens on\)"):
        TokenSource(np.array([0, 1, 2, -1]), sequence_length=4, vocab_size=9)
    assert TokenSource(np.zeros(4, np.float32), sequence_length=4).largest_id() is None
    with pytest.raises(ValueError, match="the tokens must be integers to be checked, and are float32"):
        TokenSource(np.zeros(4, np.float32), sequence_length=4, vocab_size=9)


def test_check_takes_the_options_and_names_the_file(tmp_path):
    (tmp_path / "a.bin").write_bytes(llm_c(U16))
    text = "mixtures: {{train: {{sources: {{one: {{kind: tokens, path: a.bin, sequence_length: 11, weight: 1{}}}}}}}}}"
    (tmp_path / "mixture.yaml").write_text(
        text.format(", header: llm.c, overlap: 1, windows: per_file, vocab_size: 50_000, as: int32")
    )
    code, shown = run("check", tmp_path / "mixture.yaml")
    assert code == 0
    assert "tokens: int32[11]" in shown
    (tmp_path / "mixture.yaml").write_text(text.format(""))
    (tmp_path / "a.bin").write_bytes(gzip.compress(U16.tobytes()))
    code, shown = run("check", tmp_path / "mixture.yaml")
    assert code == 2
    assert re.search(r"mixtures.train.sources.one: .*a.bin is compressed by gzip", shown.replace("\n", " "))


def test_two_thousand_files_open_in_two_seconds(tmp_path):
    for number in range(2000):
        (tmp_path / f"{number:04}.bin").write_bytes(U16.tobytes())
    allow_many_files()
    begin = time.process_time()
    source = TokenSource(sorted(tmp_path.iterdir()), sequence_length=128, dtype="uint16", overlap=1)
    source.content_digest()
    assert time.process_time() - begin < 2  # 0.35 s on a quiet machine
    assert len(source) == (2_000_000 - 128) // 127 + 1


def test_a_field_may_have_a_slash_in_its_name():
    source = TokenSource(np.arange(64, dtype=np.uint16), sequence_length=4, field="a/b")
    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE), [source])
    (record,) = source.take(np.array([3])).values()
    assert record.tolist() == [[12, 13, 14, 15]]
    assert list(node.element_spec()) == ["a/b"]
