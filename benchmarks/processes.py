"""Batches from one server of 1, 2 and 4 processes, of sources whose reads threads cannot share.

`python -m benchmarks.processes`, from the root of a clone. Results: benchmarks/results/processes.md.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.progress import track

from benchmarks.common.spread import Spread, spread
from benchmarks.measure import machine
from mixserve_client import MixClient

_RESULTS = Path(__file__).parent / "results"
_PROCESSES = (1, 2, 4)
_CLIENTS, _READERS = 4, 4  # readers of each client
_WAYS = {
    "waits": "waits 20 ms per read, under a lock",
    "computes": "computes 5 ms of Python per record",
}
_ROWS = 4  # of a batch, of 160 KiB each: a reply has one batch, so that each is a read of its own
_START_S = 120

# What the servers read, as a module beside their file. A read is a call of the source for some records.
_SOURCES = '''
import threading
import time

import numpy as np

from mixserve import RandomAccessSource


class Waits:
    """A read waits 20 ms, one at a time: as a library whose lock its threads share."""

    def __init__(self):
        self._lock = threading.Lock()

    def __len__(self):
        return 1 << 20

    def __getitem__(self, at):
        return {"x": np.full(40960, at, np.int32)}

    def __getitems__(self, ids):
        with self._lock:
            time.sleep(0.02)
        return [self[int(at)] for at in ids]


class Computes:
    """A record takes about 5 ms of Python, which one thread of a process at a time can run."""

    def __len__(self):
        return 1 << 20

    def __getitem__(self, at):
        until = time.thread_time() + 0.005
        while time.thread_time() < until:
            pass
        return {"x": np.full(40960, at, np.int32)}


def waits():
    return RandomAccessSource(Waits(), content_id="waits")


def computes():
    return RandomAccessSource(Computes(), content_id="computes", threads=1)
'''


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of every server in every round")
    arguments = parser.parse_args()
    rounds: list[dict[str, Any]] = []
    memory: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "benchmark_sources.py").write_text(_SOURCES)
        for way in _WAYS:
            with _servers(folder, way) as servers:
                for number in track(range(-1, arguments.rounds), way):
                    for count, (address, _) in servers.items():
                        rate = _measure(address, _ROWS, 1000 + number, arguments.seconds)
                        if number >= 0:
                            rounds.append({"way": way, "processes": count, "round": number, "batches_s": rate})
                memory[way] = _private_bytes(servers[max(_PROCESSES)][1])
    text = _report(rounds, memory, arguments.rounds, arguments.seconds)
    print(text)
    found = {"machine": machine(), "cores": len(os.sched_getaffinity(0)), "rounds": rounds, "private_bytes": memory}
    (_RESULTS / "processes.json").write_text(json.dumps(found, indent=1) + "\n")
    (_RESULTS / "processes.md").write_text(text)


@contextmanager
def _servers(folder: Path, way: str) -> Iterator[dict[int, tuple[str, int]]]:
    """The address and process of a server with each number of processes."""
    config, started = folder / f"{way}.yaml", dict[int, tuple[subprocess.Popen[bytes], Path]]()
    source = f"{{kind: factory, function: 'benchmark_sources:{way}', weight: 1}}"
    config.write_text(f"mixtures:\n  train:\n    sources:\n      it: {source}\nserver: {{port: 0}}\n")
    try:
        for count in _PROCESSES:
            log = folder / f"{way}.{count}.log"
            command = [sys.executable, "-m", "mixserve", "serve", str(config), "--processes", str(count)]
            with log.open("wb") as out:
                started[count] = subprocess.Popen(command, stderr=out), log
        yield {count: (_address(log), process.pid) for count, (process, log) in started.items()}
    finally:
        for process, _ in started.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in started.values():
            process.wait()


def _address(log: Path) -> str:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        found = re.search(r"INFO serving on (\S+)", log.read_text())
        if found is not None:
            return found.group(1)
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text()}")


def _measure(address: str, rows: int, key: int, seconds: float) -> float:
    """Batches per second of several clients with several readers each."""
    ended, counts = Event(), list[int]()

    def read(client: MixClient, number: int) -> None:
        with client.batches(rows, key, start=number << 20, prefetch=1) as batches:
            next(batches)
            while not ended.is_set():
                next(batches)
                counts.append(1)

    clients = [MixClient.connect(address, shared_memory=False) for _ in range(_CLIENTS)]
    threads = [
        Thread(target=read, args=(client, number * _READERS + reader), daemon=True)
        for number, client in enumerate(clients)
        for reader in range(_READERS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 3)  # until all have begun
    first, began = len(counts), time.perf_counter()
    time.sleep(seconds)
    rate = (len(counts) - first) / (time.perf_counter() - began)
    ended.set()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    return rate


def _private_bytes(pid: int) -> list[int]:
    """The private memory of a server's workers, as Linux counts it."""
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        text = Path(f"/proc/{child}/smaps_rollup").read_text()
        found.append(1024 * sum(int(size) for size in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE)))
    return found


def _report(rounds: list[dict[str, Any]], memory: dict[str, list[int]], count: int, seconds: float) -> str:
    lines = [
        "# One server of several processes",
        "",
        f"{_CLIENTS} clients in one process, with {_READERS} readers each, over loopback TCP; the servers in turn.",
        "Batches per second: medians over the rounds. Then the ratio to one process, round by round: its median and",
        "the middle half. A source that waits gains from processes on any machine; one that computes needs a core for",
        "each.",
        "",
        "| a source that | processes | batches/s | by one process |",
        "| --- | ---: | ---: | --- |",
    ]
    for way, name in _WAYS.items():
        for processes in _PROCESSES:
            here, one = (
                {at["round"]: at["batches_s"] for at in rounds if at["way"] == way and at["processes"] == which}
                for which in (processes, 1)
            )
            found = spread(list(here.values()))
            assert found is not None
            ratio = "" if processes == 1 else str(spread([here[at] / one[at] for at in here]))
            lines.append(f"| {name} | {processes} | {Spread.digits(found.median)} | {ratio} |")
    private = sorted(size for sizes in memory.values() for size in sizes)
    lines += [
        "",
        f"- private memory of a worker: {private[0] / 1e6:.0f} to {private[-1] / 1e6:.0f} MB",
        f"- {machine()}, {len(os.sched_getaffinity(0))} cores; {count} rounds of {seconds} s for each server",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
