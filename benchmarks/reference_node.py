"""The node beside the reference's own implementation (datarax), eager and jitted, at 2 to 128 sources.

It goes on where node.py ends, in an environment of its own: `make bench` runs it with the Python of .venv-datarax.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from datarax.sources import MemorySource, MemorySourceConfig
from datarax.sources.mixed_source import MixDataSourcesConfig as TheirConfig
from datarax.sources.mixed_source import MixDataSourcesNode as TheirNode
from rich.progress import track

from measure import machine, peak_above_bytes, ratio, report
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode

COUNTS = (2, 8, 32, 128)
# Eager, the reference copies all data once per record of the batch; so little data, and few rounds.
SIZES = {"eager": 64, "jitted": 256}
ROWS = {"eager": 256, "jitted": 2048}  # int32
RECORDS = {"eager": 4096, "jitted": 32_768}  # 4 and 256 MiB over all sources
ROUNDS = {"eager": 5, "jitted": 201}
CAP_S = 60  # beyond this the reference's eager batch is measured once
PATIENCE_S = 600  # and beyond this it is given up
WAYS = ("eager", "jitted, closure", "jitted, argument")
NODES = ("theirs", "host", "device")

Task = Callable[[int], object]


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        way, count, quick = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "quick"
        print(json.dumps(measured(way, count, quick)))
        return
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2], int(sys.argv[3]), sys.argv[4]))
        return
    quick = "--quick" in sys.argv  # a few rounds, to see that it works; nothing is kept
    rows = []
    for way, count in track([(way, count) for way in WAYS for count in COUNTS], "ours beside the reference's"):
        taken = _of_child("--measure", way, count, "quick" if quick else "full")
        peaks = {}
        for name in NODES:
            if taken is None or name in taken:
                peaks[name] = _of_child("--peak", way, count, name)
        rows.append(_row(way, count, taken, peaks))
    notes = [
        "Eager: 64 records of 1 KiB of 4 MiB of data, since the reference copies all data once per record of a batch; "
        "jitted: 256 records of 8 KiB of 256 MiB.",
        f"Up to {ROUNDS['eager']} rounds in turn when eager, {ROUNDS['jitted']} when jitted; another key and start each "
        "round; medians, quartiles. All give the same batches, which is checked.",
        "Theirs has MemorySources over JAX arrays, ours ArraySources over NumPy arrays; jax.jit, traced start and key. "
        "`closure`: the program holds the node, its data are constants. `argument`: the node is passed to the program.",
        "Ours on the `device` (here the CPU) gathers inside the program; on the `host` the program calls back.",
        f"A batch that takes more than {CAP_S} s is measured once; one of more than {PATIENCE_S} s is given up.",
        "Peak memory: above the data and the node, over the first three batches with their compilation; own processes.",
        machine(),
    ]
    if quick:
        print(*(json.dumps(row) for row in rows), sep="\n")
    else:
        report("reference_node", "The node beside the reference's own implementation", rows, notes)


def _row(way: str, count: int, taken: dict[str, list[float]] | None, peaks: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"way": way, "sources": count}
    for name in NODES:
        label = "theirs" if name == "theirs" else f"ours {name}"
        seconds = (taken or {}).get(name)
        row[f"{label} ms"] = f"{statistics.median(seconds) * 1e3:.2f}" if seconds else f"over {PATIENCE_S:,} s"
        if name != "theirs":
            row[f"theirs / {label}"] = _ratio((taken or {}).get("theirs"), seconds)
    for name in NODES:
        label = "theirs" if name == "theirs" else f"ours {name}"
        value = peaks.get(name)
        row[f"peak MiB {label}"] = "not measured" if value is None else f"{value / 2**20:.0f}"
    return row


def _ratio(theirs: list[float] | None, ours: list[float] | None) -> str:
    if not theirs or not ours:
        return "not measured"
    if len(theirs) == 1:
        return f"{theirs[0] / statistics.median(ours):.0f} (one round)"
    return ratio(theirs, ours)


def _of_child(*arguments: object) -> Any:
    """What this file prints with these arguments, in a process of its own; None where it takes too long."""
    try:
        child = [sys.executable, __file__, *map(str, arguments)]
        return json.loads(subprocess.check_output(child, timeout=PATIENCE_S).splitlines()[-1])
    except subprocess.TimeoutExpired:
        return None


def measured(way: str, count: int, quick: bool) -> dict[str, list[float]]:
    """Seconds of every round by node, A B C A B C …, after one round that compiles and compares."""
    tasks = {name: task_of(make_node(name, way, count), way) for name in NODES}
    kind = _kind(way)
    rounds = min(ROUNDS[kind], 3 if quick else ROUNDS[kind])
    began = time.perf_counter()
    expected = _fields(tasks["theirs"](0))
    slow = time.perf_counter() - began > CAP_S
    for name in ("host", "device"):
        np.testing.assert_array_equal(_fields(tasks[name](0)), expected)
    if slow:
        rounds = 1
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(1, rounds + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task(number)
            taken[name].append(time.perf_counter() - began)
    return taken


def peak(way: str, count: int, name: str) -> int:
    """How far resident memory rises over the first batches of a node, in bytes."""
    task = task_of(make_node(name, way, count), way)
    jax.block_until_ready(jax.random.key(0))

    def read() -> None:
        for number in range(1 if way == "eager" else 3):
            task(number)

    return peak_above_bytes(read)


def make_node(name: str, way: str, count: int) -> Any:
    kind = _kind(way)
    data = np.random.default_rng(0).integers(0, 1 << 30, (RECORDS[kind], ROWS[kind]), np.int32)
    parts, weights = np.split(data, count), (1.0,) * count
    if name == "theirs":
        sources = [MemorySource(MemorySourceConfig(), {"tokens": jax.device_put(part)}) for part in parts]
        return TheirNode(TheirConfig(num_sources=count, weights=weights), sources)
    config = MixDataSourcesConfig(num_sources=count, weights=weights, placement=name)
    return MixDataSourcesNode(config, [ArraySource({"tokens": part}) for part in parts])


def task_of(node: Any, way: str) -> Task:
    """Reads the batch of a round, and waits for it."""
    size = SIZES[_kind(way)]
    if way == "eager":
        read = lambda start, key: node.get_batch_at(start, size, key)  # noqa: E731
    elif way == "jitted, closure":
        read = jax.jit(lambda start, key: node.get_batch_at(start, size, key))
    else:
        program = jax.jit(lambda node, start, key: node.get_batch_at(start, size, key))
        read = lambda start, key: program(node, start, key)  # noqa: E731
    keys = list(jax.random.split(jax.random.key(0), ROUNDS[_kind(way)] + 1))
    jax.block_until_ready(keys)
    return lambda number: jax.block_until_ready(read(number * size, keys[number]))


def _kind(way: str) -> str:
    return way.split(",")[0]


def _fields(batch: Any) -> np.ndarray:
    return np.asarray(batch["tokens"])


if __name__ == "__main__":
    main()
