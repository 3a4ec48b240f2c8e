"""Data that are larger than memory: batches from a cold disk, beside `preadv` of the same records from 16 threads.

`python benchmarks/cold.py [GIGABYTES_OF_TOKENS GIGABYTES_OF_ARRAY_RECORD]`, by default 8 and 2; the files are made in
the current folder and removed. The results go to benchmarks/results/cold.{md,json}.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from array_record.python import array_record_module
from rich.progress import track

from measure import machine, report
from mixserve_client import MixClient

SIZE, BATCHES, ROUNDS, THREADS = 256, 60, 5, 16
LENGTH = 4097  # uint16 windows of 8,194 bytes, which overlap by one id and so begin at odd multiples of 2
RECORD = 8192  # bytes of an ArrayRecord
SHARDS = 4
KEY = 7
_PIECE = 64 << 20


def main() -> None:
    tokens_gb, records_gb = map(float, sys.argv[1:] or ("8", "2"))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        for kind, files, yaml in (
            ("tokens", make_tokens(folder, tokens_gb), f"dtype: uint16, sequence_length: {LENGTH}, overlap: 1"),
            ("array_record", make_records(folder, records_gb), "record: bytes, field: data"),
        ):
            config = folder / f"{kind}.yaml"
            extra = f", fields: {{data: {{from: data, length: {RECORD}}}}}" if kind == "array_record" else ""
            names = [file.name for file in files]
            config.write_text(
                f"mixtures: {{train: {{sampling: epoch, sources: {{data: "
                f"{{kind: {kind}, path: {names}, {yaml}{extra}, weight: 1}}}}}}}}\n"
            )
            rows.append(measure(kind, files, config))
    notes = [
        f"{machine()}; batches of {SIZE} records at random, {BATCHES} in a round, {ROUNDS} rounds in turn, each after "
        "the page cache of the files was emptied (posix_fadvise DONTNEED); medians, and of ratios the quartiles",
        f"preadv: the same records, read into one array by {THREADS} threads; of ArrayRecord, whose records have no "
        "public addresses, as many blocks of the same size at random places of the same files",
        "private memory is that of the server's process without pages of files (RssAnon), start is from the command to "
        "`serving on`",
    ]
    report("cold", "Batches from a cold disk", rows, notes)


def make_tokens(folder: Path, gigabytes: float) -> list[Path]:
    random = np.random.default_rng(0)
    piece = random.integers(0, 50_000, _PIECE // 2, np.uint16).tobytes()
    files = [folder / f"tokens-{shard}.bin" for shard in range(SHARDS)]
    for file in track(files, "tokens"):
        with file.open("wb") as out:
            for _ in range(max(1, int(gigabytes * 1e9 / SHARDS / _PIECE))):
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
    return files


def make_records(folder: Path, gigabytes: float) -> list[Path]:
    random = np.random.default_rng(1)
    files = [folder / f"records-{shard}.array_record" for shard in range(SHARDS)]
    for file in track(files, "array_record"):
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1,uncompressed")
        data = random.bytes(_PIECE)
        for at in range(int(gigabytes * 1e9 / SHARDS / RECORD)):
            begin = at * RECORD % (_PIECE - RECORD)
            writer.write(data[begin : begin + RECORD])
        writer.close()
        sync(file)
    return files


def measure(kind: str, files: list[Path], config: Path) -> dict[str, object]:
    ours: list[float] = []
    theirs: list[float] = []
    worst: dict[str, list[float]] = {"ours": [], "preadv": []}
    descriptors = [os.open(file, os.O_RDONLY) for file in files]
    sizes = [file.stat().st_size for file in files]
    with serving(config) as (address, started_s, process), MixClient.connect(address) as client:
        read = reader(descriptors, sizes)
        batches = client.batches(SIZE, KEY)
        private = 0.0
        for _ in track(range(ROUNDS), kind):
            for taken, slowest, step in (
                (ours, worst["ours"], lambda: next(batches)),
                (theirs, worst["preadv"], read),
            ):
                batches.set_state(batches.get_state())  # drops what was read ahead
                evict(files)
                times = [timed(step) for _ in range(BATCHES)]
                taken.append(sum(times))
                slowest.append(max(times))
            private = max(private, private_bytes(process))
    for descriptor in descriptors:
        os.close(descriptor)
    low, middle, high = statistics.quantiles([b / a for a, b in zip(ours, theirs, strict=True)], n=4)
    count = SIZE * BATCHES
    return {
        "kind": kind,
        "GB": round(sum(sizes) / 1e9, 1),
        "records/s": round(count / statistics.median(ours)),
        "preadv records/s": round(count / statistics.median(theirs)),
        "ours / preadv": f"{middle:.2f} ({low:.2f} to {high:.2f})",
        "worst batch ms": round(statistics.median(worst["ours"]) * 1e3, 1),
        "worst of preadv ms": round(statistics.median(worst["preadv"]) * 1e3, 1),
        "private MB": round(private / 1e6),
        "start s": round(started_s, 2),
    }


def reader(descriptors: list[int], sizes: list[int]) -> Callable[[], object]:
    """Reads a batch of random records of 8 KiB from many threads."""
    random, threads = np.random.default_rng(5), ThreadPoolExecutor(THREADS)
    row = 2 * LENGTH
    out = memoryview(bytearray(SIZE * row))

    def read(place: tuple[int, int, int]) -> int:
        number, file, offset = place
        return os.preadv(descriptors[file], [out[number * row : (number + 1) * row]], offset)

    def batch() -> object:
        chosen = random.integers(0, len(sizes), SIZE).tolist()
        offsets = [int(random.integers(0, (sizes[file] - row) // row)) * row for file in chosen]
        return list(threads.map(read, zip(range(SIZE), chosen, offsets, strict=True)))

    return batch


def timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def evict(files: list[Path]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@contextmanager
def serving(config: Path) -> Generator[tuple[str, float, int]]:
    began = time.perf_counter()
    command = [sys.executable, "-m", "mixserve", "serve", str(config), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                found = re.search(r"serving on (\S+)", line)
                if found:
                    yield found[1], time.perf_counter() - began, process.pid
                    return
            raise RuntimeError("the server ended")
        finally:
            process.terminate()


def private_bytes(process: int) -> int:
    """Resident memory without the pages of files, which the system may take back at any time."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
