"""What `mixserve check` shows of sources, what it warns of, and what it reads with `--full`."""

import os
import pty
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from mixserve.cli.check import show_bytes
from mixserve.cli.late_progress import late_progress
from mixserve.cli.main import app
from mixserve.mixture.id_patterns import find_pattern
from tests.arrow_files import save_to_disk
from tests.records import example, write_array_record

RNG = np.random.default_rng(0)


def check(file: Path, *options: str, columns: int = 200, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["check", str(file), *options], env={"COLUMNS": str(columns)})
    assert result.exit_code == code, result.output
    return result.output


def write(folder: Path, *sources: str, more: str = "") -> Path:
    file = folder / "mixture.yaml"
    file.write_text("mixtures:\n  m:\n" + more + "    sources:\n" + "".join(f"      {source}\n" for source in sources))
    return file


def tokens(
    folder: Path, name: str, ids: np.ndarray, *, dtype: str | None = None, length: int = 33, more: str = ""
) -> str:
    ids.tofile(folder / f"{name}.bin")
    kind = dtype or ids.dtype.name
    return f"{name}: {{kind: tokens, path: {name}.bin, dtype: {kind}, sequence_length: {length}, weight: 1{more}}}"


def cells(shown: str) -> list[list[str]]:
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def ids_below(vocabulary: int, count: int = 4000) -> np.ndarray:
    ids = RNG.integers(1, vocabulary, count)
    ids[:2] = 1, vocabulary - 1
    return ids


def test_the_table_has_sizes_speeds_and_ids(tmp_path):
    first, second = ids_below(300).astype(np.uint16), ids_below(50_000, 400).astype(np.uint16)
    first[-7:] = 0  # after the last whole window
    file = write(tmp_path, tokens(tmp_path, "b", first), tokens(tmp_path, "a", second))
    shown = check(file)
    (name, records, size, share, speed, ids), (other, *_, wide) = cells(shown)
    assert (name, records, size, share, other) == ("b", "121", "8.0 kB", "50.0000%", "a")
    assert re.fullmatch(r"[\d.]+( [kMG])?", speed)
    assert ids == "1 to 299"
    assert wide.endswith(" to 49,999")
    assert "ids in" in shown
    assert "warning" not in shown
    assert "ids in" not in check(file, "--full")


def test_mixtures_are_in_the_order_of_the_file_and_tables_have_room(tmp_path):
    source = tokens(
        tmp_path, "a_source_with_a_very_long_name_that_is_folded", ids_below(60_000, 10**6).astype(np.uint32)
    )
    more = "    sampling: epoch\n"
    file = write(tmp_path, source, more=more)
    text = file.read_text()
    file.write_text(text.replace("  m:", "  z:") + text.partition("\n")[2].replace("  m:", "  a:"))
    shown = check(file, columns=60)
    assert shown.index("mixture z") < shown.index("mixture a")
    assert all(len(line) <= 60 for line in shown.splitlines() if line[:1] in "┃│┏")
    assert shown.count("┏") == 4  # two tables for each
    assert "…" not in shown
    assert "59,999" in shown
    assert check(file, columns=120).count("┏") == 2


@pytest.mark.parametrize(
    ("stored", "read_as", "said"),
    [
        ("uint32", "uint16", "every second id is 0: is the dtype uint32?"),
        ("int64", "uint16", "every second id is 0: is the dtype int64?"),
        ("int64", "uint32", "every second id is 0: is the dtype int64?"),
        ("uint16", "uint32", r"ids up to [\d,]+ are those of no vocabulary: is the dtype uint16\?"),
    ],
)
@pytest.mark.parametrize("length", [32, 33])
def test_ids_of_another_dtype_are_noticed(tmp_path, stored, read_as, said, length):
    ids = ids_below(50_000).astype(stored)
    shown = check(write(tmp_path, tokens(tmp_path, "a", ids, dtype=read_as, length=length)))
    assert re.search(rf"warning: a: tokens: {said if '[' in said else re.escape(said)}", shown), shown


def test_patterns_of_ids():
    wide = ids_below(128_000, 3200).astype(np.uint32)
    assert find_pattern(wide.view(np.uint16).reshape(-1, 64), np.dtype(np.uint16)) == (
        "every second id is below 16: is the dtype uint32?"
    )
    found = find_pattern(wide.view(np.uint8).reshape(-1, 64), np.dtype(np.uint8))
    assert found == "every fourth id is 0: is the dtype uint32?"
    assert find_pattern(wide.astype(np.uint64).view(np.uint32).reshape(-1, 64), None) == (
        "every second id is 0: were they written in a wider dtype?"
    )
    padded = wide.reshape(-1, 32).copy()
    padded[:, 3:] = 0
    small = RNG.integers(0, 4, (100, 64))
    for fine in (wide.reshape(-1, 32), padded, small, np.zeros((9, 32), np.uint16), wide[:0].reshape(0, 32), wide[:5]):
        assert find_pattern(fine, np.dtype(np.uint16)) is None


def test_ids_above_the_vocabulary_of_another_source(tmp_path):
    known = tokens(tmp_path, "known", ids_below(1000).astype(np.uint16), more=", vocab_size: 1000")
    file = write(tmp_path, known, tokens(tmp_path, "other", ids_below(2000).astype(np.uint16)))
    assert "warning: other: ids up to 1,999, and the vocab_size of known is 1,000" in check(file)


def test_full_finds_the_id_that_a_sample_misses(tmp_path):
    ids = ids_below(1000, 40 << 20).astype(np.uint16)
    ids[(13 << 20) + 5] = 1000
    file = write(tmp_path, tokens(tmp_path, "a", ids, length=1024, more=", vocab_size: 1000"))
    check(file)
    assert "ids must be in [0, 1,000), got 1000" in check(file, "--full", code=2)


def test_what_stop_leaves_out(tmp_path):
    sources = [
        tokens(tmp_path, name, ids_below(99, 33 * count).astype(np.uint16)) for name, count in (("a", 271), ("b", 387))
    ]
    more = "    sampling: epoch\n    stop: first_exhausted\n"
    file = write(
        tmp_path,
        sources[0].replace("weight: 1", "weight: 0.4"),
        sources[1].replace("weight: 1", "weight: 1"),
        more=more,
    )
    said = (
        "warning: stop: first_exhausted ends a after 155 of its 271 records; the weights 271 and 387 read all of a, b"
    )
    assert said in check(file)
    file.write_text(file.read_text().replace("weight: 0.4", "weight: 271").replace("weight: 1}", "weight: 387}"))
    assert "warning" not in check(file)


def test_records_that_are_too_long(tmp_path):
    lengths = [3, 9, 4, 5]
    column = pa.array([list(range(1, n + 1)) for n in lengths], pa.list_(pa.int32()))
    save_to_disk(tmp_path / "set", [pa.table({"ids": column}).to_batches()])
    source = "a: {kind: hf, path: set, weight: 1, fields: {tokens: {from: ids, length: 4, long: cut}}}"
    shown = check(write(tmp_path, source))
    assert "too long" in shown
    assert "6/21" not in shown
    (row, below) = cells(shown)
    assert (row[5], below[5]) == ("2", "28.6% cut")
    assert "4 records" not in check(write(tmp_path, source.replace("length: 4", "length: 9")))
    refused = check(write(tmp_path, source.replace("long: cut", "long: refuse")), code=2)
    assert "sources.a: fields.tokens: 2 records have more values than its length" in refused


def test_full_names_the_first_bad_record(tmp_path):
    records = [example({"ids": [number, 1]}) for number in range(3000)]
    records[2000] = records[2500] = b"\xff garbage"
    write_array_record(tmp_path / "x.array_record", records)
    file = write(tmp_path, "a: {kind: array_record, path: x.array_record, weight: 1}")
    said = check(file, "--full", code=2)
    assert "mixtures.m.sources.a: reading the record 2000 of the source 'a'" in said.replace("\n", "")
    records[2000] = records[2500] = records[0]
    (tmp_path / "x.array_record").unlink()
    write_array_record(tmp_path / "x.array_record", records, "group_size:64")
    shown = check(file, "--full")
    assert "0 to 2,999" in shown
    assert "warning: a: " in shown
    assert "group_size:64: to read one record" in shown


def test_full_is_no_simulation(tmp_path):
    file = write(tmp_path, tokens(tmp_path, "a", ids_below(99).astype(np.uint16)))
    assert "run check twice" in check(file, "--full", "--simulate", "10", code=2)


def test_long_work_shows_a_bar_on_a_terminal(monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr("mixserve.cli.late_progress._SHOWN_AFTER_S", 0.01)
        with late_progress("reading all records", 10) as tell:
            tell(5)
            shown = b""
            while b"50%" not in shown:  # the test's own deadline ends it
                shown += screen.read(4096)
        assert b"reading all records" in shown
        monkeypatch.setattr("mixserve.cli.late_progress._SHOWN_AFTER_S", 60.0)
        terminal.write("nothing between ")
        with late_progress("short work", 10) as tell:
            tell(10)
        terminal.write("and the end")
        terminal.flush()
        shown = b""
        while b"the end" not in shown:
            shown += screen.read(4096)
        assert b"short work" not in shown


def test_sizes_have_two_or_three_digits():
    shown = [show_bytes(count) for count in (0, 999, 1000, 9949, 9950, 999_499, 999_500, 5 * 10**15)]
    assert shown == ["0 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "999 kB", "1.0 MB", "5.0 PB"]
