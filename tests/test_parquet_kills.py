"""A conversion of Parquet files that is killed again and again ends with the bytes of a quiet one, in little memory.

MIXSERVE_PARQUET_MB sets the size of the values in memory, MIXSERVE_PARQUET_KILLS the number of kills; `make parquet`
has 5 GB and 10.
"""

import hashlib
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixserve import FieldSpec, ParquetSource
from mixserve.sources.prepared import preparing_in
from tests.forked import Forked

MEGABYTES = int(os.environ.get("MIXSERVE_PARQUET_MB") or 24)
KILLS = int(os.environ.get("MIXSERVE_PARQUET_KILLS") or 3)
MOST_MEMORY_MB = 2000
FILES = 4
# A file is one row group of 1.25 GB of values at 5 GB: conversions must not read whole groups.
ROWS = MEGABYTES * 1_000_000 // 2000 // FILES
FIELDS = [FieldSpec("tokens", "tokens", length=2048, lengths="n"), FieldSpec("label", "label")]
DEADLINE_S = 600.0


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> Iterator[list[str]]:
    """Lists of 0 to 1,000 int32."""
    folder = tmp_path_factory.mktemp("parquet")
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{number}.parquet") for number in range(FILES)]
    for path in paths:
        ends = np.cumsum(np.append(0, rng.integers(0, 1001, ROWS)), dtype=np.int32)
        tokens = pa.ListArray.from_arrays(ends, pa.array(rng.integers(0, 50_000, ends[-1], np.int32)))
        whole = pa.table({"tokens": tokens, "label": np.arange(ROWS), "unused": np.arange(ROWS)})
        pq.write_table(whole, path, compression="zstd", row_group_size=ROWS)
    yield paths
    shutil.rmtree(folder)


def convert(prepared: str, paths: list[str]) -> None:
    """A process of its own that opens the source, and says how much memory it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with preparing_in(Path(prepared)):
        source = ParquetSource(paths, FIELDS)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(source)} rows, {most // 1000} MB, {before // 1000} MB of them before")


def contents(prepared: Path) -> dict[str, str]:
    """The digests of all files below the folder, hidden ones included."""
    found: dict[str, str] = {}
    for path in sorted(prepared.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(prepared))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def written(prepared: Path) -> int:
    """How many bytes a conversion in progress has written."""
    size = 0
    for path in prepared.glob(".*.unfinished/*"):
        try:
            size += path.stat().st_size
        except FileNotFoundError:
            continue
    return size


def kill_at(size: int, prepared: Path, paths: list[str], log: Path) -> bool:
    """Kill a conversion when it has written so many bytes. Returns whether it was still running."""
    process = Forked(convert, str(prepared), paths, log=log)
    deadline = time.monotonic() + DEADLINE_S
    while written(prepared) < size and process.poll() is None:
        assert time.monotonic() < deadline, process.log()
        time.sleep(0.001)
    ran = process.poll() is None
    process.kill()
    return ran and any(prepared.glob(".*.unfinished"))


@pytest.mark.alone
@pytest.mark.timeout(int(3 * DEADLINE_S))
def test_a_conversion_that_is_killed_ends_with_the_same_bytes(tmp_path, paths):
    quiet, killed, log = tmp_path / "quiet", tmp_path / "killed", tmp_path / "log"
    # Of two at once, one converts; the other waits for it.
    both = [Forked(convert, str(quiet), paths, log=tmp_path / f"{i}.log") for i in range(2)]
    for process in both:
        assert process.wait(DEADLINE_S) == 0, process.log()
        rows, most, _ = (int(part.split()[0]) for part in process.log().split(", "))
        print(process.log(), end="", file=sys.stderr)
        assert rows == ROWS * FILES
        assert most < MOST_MEMORY_MB
    assert len(list(quiet.iterdir())) == 1
    whole = contents(quiet)
    total = sum(path.stat().st_size for path in quiet.rglob("*.*"))
    kills = tries = 0
    while kills < KILLS:
        tries += 1
        assert tries < 3 * KILLS + 10
        # Of a quick conversion the end may come before the kill: it does not count, and is made again.
        if kill_at(total * (kills + 1) // (KILLS + 2), killed, paths, log):
            kills += 1
        else:
            shutil.rmtree(killed, ignore_errors=True)
    last = Forked(convert, str(killed), paths, log=log)
    assert last.wait(DEADLINE_S) == 0, last.log()
    assert contents(killed) == whole
    with preparing_in(killed):
        source = ParquetSource(paths, FIELDS)
    for number, path in enumerate(paths[:: FILES - 1]):
        with pq.ParquetFile(path) as file:
            batch = next(file.iter_batches(16, columns=["tokens", "label"]))
        taken = source.take(np.arange(len(batch)) + number * (FILES - 1) * ROWS)
        for row, tokens, count in zip(batch["tokens"], taken["tokens"], taken["n"], strict=True):
            assert tokens[:count].tolist() == row.as_py()
        assert taken["label"].tolist() == batch["label"].to_pylist()
