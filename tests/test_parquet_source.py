"""Parquet files: rows are those that pyarrow reads, they are converted once, and what is damaged is refused."""

import os
import pickle
import pty
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mixserve import FieldSpec, ParquetSource
from mixserve.cli.main import app
from mixserve.sources.open_file import file_of
from mixserve.sources.prepared import preparing_in
from tests.arrow_files import RNG, expected, ragged, same, values
from tests.forked import in_a_fork
from tests.profiles import examples

NUMBERS = [pa.type_for_alias(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
KINDS = [*NUMBERS, pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.binary(5)]
ROWS = 40
WORDS, MANY, PAIR = pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.int16()), pa.list_(pa.int16(), 2)


@pytest.fixture(autouse=True)
def prepared(tmp_path) -> Iterator[Path]:
    with preparing_in(tmp_path / "prepared"):
        yield tmp_path / "prepared"


def table(rows: int = ROWS) -> pa.Table:
    return pa.table({"tokens": ragged(pa.int32(), rows), "label": values(pa.int64(), rows)})


def write(folder: Path, whole: pa.Table, *, group: int = 7, **options: Any) -> list[Path]:
    """The table in two files."""
    folder.mkdir(exist_ok=True)
    half = len(whole) // 2
    paths = [folder / "a.parquet", folder / "b.parquet"]
    for path, part in zip(paths, (whole[:half], whole[half:]), strict=True):
        pq.write_table(part, path, row_group_size=group, **options)
    return paths


TOKENS = [FieldSpec("tokens", "tokens", length=5, lengths="n"), FieldSpec("label", "label")]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_type_comes_out_as_it_is_stored(tmp_path, kind):
    whole = pa.table(
        {
            "one": values(kind, ROWS),
            "pair": pa.FixedSizeListArray.from_arrays(values(kind, ROWS * 2), 2),
            "many": ragged(kind, ROWS),
            "large": ragged(kind, ROWS).cast(pa.large_list(kind)),
        }
    )
    fields = [FieldSpec("one", "one"), FieldSpec("pair", "pair")]
    fields += [FieldSpec(name, name, length=5, lengths=f"{name}_n") for name in ("many", "large")]
    source = ParquetSource(write(tmp_path / "in", whole), fields)
    ids = RNG.permutation(ROWS)
    taken = source.take(ids)
    for name in whole.column_names:
        rows = expected(whole[name], taken[name].dtype)
        for place, record_id in enumerate(ids):
            row = rows[record_id].reshape(-1, *taken[name].shape[2:]) if f"{name}_n" in taken else rows[record_id]
            count = taken[f"{name}_n"][place] if f"{name}_n" in taken else None
            assert same(taken[name][place][:count] if count is not None else taken[name][place], row)
            assert count is None or not taken[name][place, count:].view(np.uint8).any()


def test_texts_bytes_and_dictionaries(tmp_path):
    words = pa.array([RNG.choice(["a", "naïve", "", "long word"]) for _ in range(ROWS)])
    codes = words.dictionary_encode().cast(WORDS)
    whole = pa.table({"text": words, "raw": words.cast(pa.binary()), "code": codes})
    fields = [FieldSpec(name, name, length=9, lengths=f"{name}_n") for name in ("text", "raw")]
    source = ParquetSource(write(tmp_path / "in", whole), [*fields, FieldSpec("code", "code")])
    taken = source.take(np.arange(ROWS))
    for row, word in enumerate(words.to_pylist()):
        for name in ("text", "raw"):
            assert taken[name][row, : taken[f"{name}_n"][row]].tobytes() == word.encode()
        assert source.dictionaries["code"][taken["code"][row]] == word
    assert taken["code"].dtype == np.int32


@settings(max_examples=examples(40))
@given(st.data())
def test_null_values_are_refused_or_replaced(tmp_path_factory, data):
    kind = data.draw(st.sampled_from([pa.int16(), pa.bool_(), MANY, PAIR, WORDS]))
    is_list = kind in (MANY, PAIR)
    some = {pa.bool_(): st.booleans(), WORDS: st.sampled_from("ab")}.get(kind, st.integers(0, 9))
    row = st.none() | some
    if is_list:
        row = st.none() | st.lists(row, min_size=2 if kind == PAIR else 0, max_size=2)
    rows = data.draw(st.lists(row, min_size=2, max_size=20))
    folder = tmp_path_factory.mktemp("nulls")
    length = 2 if kind == MANY else None
    paths = write(folder, pa.table({"x": pa.array(rows, kind)}))
    has_null = [row is None or (is_list and None in row) for row in rows]
    with preparing_in(folder / "prepared"):
        if any(has_null):
            first = has_null.index(True)
            path, row = (paths[0], first) if first < len(rows) // 2 else (paths[1], first - len(rows) // 2)
            with pytest.raises(ValueError, match=rf"{path}: the field 'x' has a null value, in row {row};"):
                ParquetSource(paths, [FieldSpec("x", "x", length=length)])
        source = ParquetSource(paths, [FieldSpec("x", "x", length=length, null=1)])
        taken = source.take(np.arange(len(rows)))["x"]
    if kind == PAIR:
        wanted = [[1, 1] if row is None else [1 if v is None else v for v in row] for row in rows]
    elif is_list:
        wanted = [[*(1 if v is None else v for v in row or []), 0, 0][:2] for row in rows]
    elif source.dictionaries:
        wanted = [1 if row is None else source.dictionaries["x"].index(row) for row in rows]
    else:
        wanted = [True if row is None and kind == pa.bool_() else 1 if row is None else row for row in rows]
    assert taken.tolist() == wanted
    assert taken.dtype != np.float64


def test_it_is_converted_once_and_found_by_content(tmp_path, prepared):
    whole = table()
    paths = write(tmp_path / "in", whole)
    source = ParquetSource(paths, TOKENS)
    (folder,) = prepared.iterdir()
    known = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    shutil.copytree(tmp_path / "in", tmp_path / "moved")
    for fields in (TOKENS, [FieldSpec("t", "tokens", length=7, long="cut", pad=3), FieldSpec("label", "label")]):
        moved = ParquetSource([tmp_path / "moved" / path.name for path in paths], fields)
        assert len(moved) == ROWS
        assert list(prepared.iterdir()) == [folder]
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()} == known
    assert moved.content_digest() != source.content_digest()
    # Only the columns that are needed are converted, and other content goes to another folder.
    alone = ParquetSource(paths)
    assert list(alone.element_spec()) == ["label"]
    assert len(list(prepared.iterdir())) == 2
    write(tmp_path / "in", whole.slice(1).append_column("more", values(pa.int8(), ROWS - 1)))
    assert len(ParquetSource(paths)) == ROWS - 1
    assert len(list(prepared.iterdir())) == 3


def test_it_is_served_from_maps_and_says_which_row_of_the_users_file(tmp_path, prepared):
    whole = table()
    paths = write(tmp_path / "in", whole)
    source = ParquetSource(paths)
    assert source.blocks is not None
    assert np.concatenate([block["label"] for block in source.blocks()]).tolist() == whole["label"].to_pylist()
    found = file_of(source.blocks()[1]["label"])
    assert found is not None
    assert found[0].path.is_relative_to(prepared)
    assert source.locate(ROWS - 1) == f"{paths[1]}, row {ROWS // 2 - 1}"
    assert all(file.path.is_relative_to(prepared) for file in source.files())
    source = ParquetSource(paths, TOKENS)
    assert source.prefetch is not None
    source.prefetch(np.arange(ROWS))
    again = pickle.loads(pickle.dumps(source))
    assert same(again.take(np.arange(ROWS))["tokens"], source.take(np.arange(ROWS))["tokens"])
    shutil.rmtree(prepared)
    with preparing_in(tmp_path / "elsewhere"):
        pickle.loads(pickle.dumps(source))  # it is converted again, to where it was
    assert prepared.is_dir()
    write(tmp_path / "in", table())
    with pytest.raises(ValueError, match="other records than when the source was pickled"):
        pickle.loads(pickle.dumps(source))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbled(path: Path) -> None:
    path.write_bytes(RNG.bytes(3000))


def garbled_footer(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-200] + RNG.bytes(192) + raw[-8:])


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    values = pq.read_table(path)["label"].to_numpy()[:2]
    raw[raw.index(values.tobytes())] ^= 255  # of values, since headers of pages have no checksums
    path.write_bytes(raw)


def other_type(path: Path) -> None:
    pq.write_table(pa.table({"tokens": ragged(pa.int64(), 3), "label": [1, 2, 3]}), path)


def lost_column(path: Path) -> None:
    pq.write_table(pa.table({"tokens": ragged(pa.int32(), 3)}), path)


def twice(path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, ["label", "label"]), path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "is not a Parquet file, or it is cut"),
        (emptied, "is empty"),
        (garbled, "is not a Parquet file"),
        (garbled_footer, "cannot be read as Parquet"),
        (flipped, "cannot be read as Parquet: .*CRC checksum"),
        (other_type, "the field 'tokens' is list<.*int64>, and list<.*int32> in the files before"),
        (lost_column, "the field 'label' is not there, and int64 in the files before"),
        (twice, "the columns label occur twice"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_damaged_is_refused(tmp_path, prepared, damage, said):
    paths = write(tmp_path / "in", table(), write_page_checksum=True, use_dictionary=False, compression="none")
    damage(paths[1])
    with pytest.raises(ValueError, match=rf"{paths[1]}.*{said}"):
        ParquetSource(paths, TOKENS)
    assert not prepared.exists() or list(prepared.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_no_damaged_footer_ends_the_process(tmp_path):
    whole = pa.table({"tokens": [[1, 2], [], [3]] * 4, "label": [1, 2, 3] * 4})
    (path, _) = write(tmp_path / "in", whole, group=100)
    raw = path.read_bytes()
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    rng = np.random.default_rng(0)

    def read_damaged_files() -> int:
        refused = 0
        for at in range(footer, len(raw) - 8, 3):
            damaged = bytearray(raw)
            damaged[at] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                ParquetSource(path, [FieldSpec("tokens", "tokens", length=5)])
            except (ValueError, MemoryError):
                refused += 1
            shutil.rmtree(tmp_path / "prepared", ignore_errors=True)
        return refused

    assert int(in_a_fork(read_damaged_files)) > 50


def test_a_file_that_vanished_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet"):
        ParquetSource(tmp_path / "gone.parquet")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([FieldSpec("x", "no_such")], "no field 'no_such' is stored; there are tokens, label, when"),
        ([FieldSpec("x", "when")], r"'when' cannot be served: it is timestamp\[us\], and batches have no times"),
        ([FieldSpec("x", "tokens")], "'tokens' is ragged, and needs a length"),
        ([FieldSpec("x", "label", null=1), FieldSpec("y", "label")], "'label' must have the same null"),
    ],
)
def test_wrong_fields_are_refused(tmp_path, prepared, fields, said):
    paths = write(tmp_path / "in", table().append_column("when", pa.nulls(ROWS, pa.timestamp("us"))))
    with pytest.raises(ValueError, match=rf"{paths[0]}: fields.*{said}"):
        ParquetSource(paths, fields)
    assert not prepared.exists()


def test_files_without_rows(tmp_path):
    paths = write(tmp_path / "in", table(1))  # the first file is empty then
    assert len(ParquetSource(paths, TOKENS)) == 1
    with pytest.raises(ValueError, match=f"{paths[0]} holds no records"):
        ParquetSource(paths[0], TOKENS)
    with pytest.raises(ValueError, match="at least one file"):
        ParquetSource([])


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, prepared):
    paths = write(tmp_path / "in", pa.table({"x": np.arange(20_000)}), group=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        said = r"cannot keep what is prepared: File too large after 1\d\d,\d\d\d bytes.*prepared: FOLDER"
        with pytest.raises(OSError, match=said):
            ParquetSource(paths)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(prepared.iterdir()) == []
    assert len(ParquetSource(paths)) == 20_000


def other_version(manifest: bytes) -> bytes:
    return manifest.replace(b'"version": 2', b'"version": 9')


def other_rows(manifest: bytes) -> bytes:
    return manifest.replace(b"20", b"19", 1).replace(b"20", b"21", 1)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, lambda data: b"") for name in ("columns.json", "0.values", "1.offsets")),
        *((name, lambda data: data[:-1]) for name in ("columns.json", "0.values")),
        ("0.values", lambda data: data[:-8] + b"damaged!"),
        ("1.offsets", lambda data: data[:8] + data[16:] + data[-8:]),
        ("columns.json", other_version),
        ("columns.json", other_rows),
        ("columns.json", lambda data: b'{"version": 2}'),
        ("columns.json", lambda data: b"[" * 100_000),
        ("columns.json", None),
        ("0.values", None),
    ],
)
def test_a_damaged_folder_is_converted_again(tmp_path, prepared, caplog, name, damage):
    paths = write(tmp_path / "in", table(), group=20)
    records = ParquetSource(paths, TOKENS).take(np.arange(ROWS))
    (folder,) = prepared.iterdir()
    whole = (folder / name).read_bytes()
    if damage is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(damage(whole))
        assert (folder / name).read_bytes() != whole
    again = ParquetSource(paths, TOKENS).take(np.arange(ROWS))
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in records.items()
    }
    assert re.search(rf"{folder} is damaged: .*; it is made again", caplog.text)
    assert (folder / name).read_bytes() == whole
    assert list(prepared.iterdir()) == [folder]


def test_a_damaged_folder_that_cannot_be_removed_is_named(tmp_path, prepared):
    paths = write(tmp_path / "in", table())
    ParquetSource(paths, TOKENS)
    (folder,) = prepared.iterdir()
    (folder / "0.values").write_bytes(b"")
    prepared.joinpath(f".{folder.name}.lock").mkdir()
    with pytest.raises(ValueError, match=f"{folder} is damaged, and cannot be removed .*: remove it, and start again"):
        ParquetSource(paths, TOKENS)


def test_many_threads_make_a_damaged_folder_again_once(tmp_path, prepared, caplog):
    paths = write(tmp_path / "in", table())
    records = ParquetSource(paths, TOKENS).take(np.arange(ROWS))
    (folder,) = prepared.iterdir()
    caplog.set_level("INFO", "mixserve")
    caplog.clear()  # of the first conversion, if the logger had this level before
    (folder / "0.values").write_bytes(b"")

    def read(_: int) -> dict[str, np.ndarray]:
        with preparing_in(prepared):
            return ParquetSource(paths, TOKENS).take(np.arange(ROWS))

    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(read, range(8)):
            assert all(same(found[name], records[name]) for name in records)
    assert caplog.text.count(": done") == 1
    assert list(prepared.iterdir()) == [folder]


def test_a_terminal_shows_a_progress_bar(tmp_path, monkeypatch):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        ParquetSource(write(tmp_path / "in", table()))
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "converting 40 rows of 2 Parquet files" in re.sub(r"\s+", " ", shown)
    assert "100%" in shown


def test_check_converts_into_the_prepared_folder_of_the_file(tmp_path):
    write(tmp_path / "in", table())
    file = tmp_path / "mixture.yaml"
    fields = "{tokens: {from: tokens, length: 5}, label: {from: label, null: 0}}"
    source = f"{{kind: parquet, path: in/*.parquet, weight: 1, fields: {fields}}}"
    file.write_text(f"mixtures: {{train: {{sources: {{a: {source}}}}}}}\nserver: {{prepared: kept}}\n")
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 0, result.output
    for part in ("field label: int64[]", "field tokens: int32[5]"):
        assert part in result.output
    assert len(list((tmp_path / "kept").iterdir())) == 1
