"""The node compared with the reference's own implementation (datarax), eager and jitted, at 2 to 128 sources.

It continues node.py in its own environment: `make bench-node` runs it with the Python of .venv-datarax.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from datarax.sources import MemorySource, MemorySourceConfig
from datarax.sources.mixed_source import MixDataSourcesConfig as TheirConfig
from datarax.sources.mixed_source import MixDataSourcesNode as TheirNode
from rich.progress import track

from measure import in_turn, machine, peak_above_bytes, ratio, report
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode

COUNTS = (2, 8, 32, 128)
# Eager, the reference copies all data once per record of the batch; hence little data and few rounds.
SIZES = {"eager": 64, "jitted": 256}
ROWS = {"eager": 256, "jitted": 2048}  # int32
RECORDS = {"eager": 4096, "jitted": 32_768}  # 4 and 256 MiB over all sources
ROUNDS = {"eager": 3, "jitted": 201}
QUICK_ROUNDS = 3
WAYS = ("eager", "jitted, closure", "jitted, argument")
NODES = ("theirs", "ours, host", "ours, device")

Task = Callable[[int], Any]


def main() -> None:
    match sys.argv[1:]:
        case ["--measure", way, count, rounds]:
            print(json.dumps(measure(way, int(count), int(rounds))))
        case ["--peak", name, way, count]:
            print(peak(name, way, int(count)))
        case ["--quick"]:  # a smoke test; no results are written
            print(*map(json.dumps, table(quick=True)), sep="\n")
        case _:
            report("reference_node", "The node beside the reference's own implementation", table(), notes())


def table(*, quick: bool = False) -> list[dict[str, Any]]:
    rows = []
    for way, count in track([(way, count) for way in WAYS for count in COUNTS], "ours beside the reference's"):
        rounds = QUICK_ROUNDS if quick else ROUNDS[_kind(way)]
        taken = _of_child("--measure", way, count, rounds)
        row = {"way": way, "sources": count}
        row |= {f"{name} ms": f"{statistics.median(seconds) * 1e3:.2f}" for name, seconds in taken.items()}
        row |= {f"theirs / {name}": ratio(taken["theirs"], taken[name]) for name in NODES[1:]}
        row |= {f"peak MiB, {name}": f"{_of_child('--peak', name, way, count) / 2**20:.0f}" for name in NODES}
        rows.append(row)
    return rows


def notes() -> list[str]:
    return [
        "Eager: 64 records of 1 KiB of 4 MiB of data, since the reference copies all data once per record of a batch; "
        f"jitted: 256 records of 8 KiB of 256 MiB. {ROUNDS['eager']} rounds in turn when eager, {ROUNDS['jitted']} "
        "when jitted, with another key and start each; medians, quartiles. Equal batches are checked.",
        "Theirs has MemorySources over JAX arrays, ours ArraySources over NumPy arrays; jax.jit, traced start and key. "
        "`closure`: the program holds the node, its data are constants. `argument`: the node is passed to the program.",
        "Ours on the `device` (here the CPU) gathers inside the program; ours on the `host` is called back by it.",
        "Peak memory: above the data and the node, over the first three batches, compilation included; a process each.",
        machine(),
    ]


def _of_child(*arguments: object) -> Any:
    """This file's output for these arguments, from a fresh process: a compiled program keeps 256 MiB of constants."""
    return json.loads(subprocess.check_output([sys.executable, __file__, *map(str, arguments)]))


def measure(way: str, count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by node, after comparing the nodes' batches."""
    tasks = {name: task_of(make_node(name, way, count), way) for name in NODES}
    expected, *ours = (np.asarray(task(0)["tokens"]) for task in tasks.values())
    for tokens in ours:
        np.testing.assert_array_equal(tokens, expected)
    return in_turn(tasks, rounds)


def peak(name: str, way: str, count: int) -> int:
    """How far resident memory rises over the first batches of a node, in bytes."""
    task = task_of(make_node(name, way, count), way)

    def read() -> None:
        for number in range(3):
            task(number)

    return peak_above_bytes(read)


def make_node(name: str, way: str, count: int) -> Any:
    kind = _kind(way)
    data = np.random.default_rng(0).integers(0, 1 << 30, (RECORDS[kind], ROWS[kind]), np.int32)
    parts, weights = np.split(data, count), (1.0,) * count
    if name == "theirs":
        sources = [MemorySource(MemorySourceConfig(), {"tokens": jax.device_put(part)}) for part in parts]
        return TheirNode(TheirConfig(num_sources=count, weights=weights), sources)
    config = MixDataSourcesConfig(num_sources=count, weights=weights, placement=name.removeprefix("ours, "))
    return MixDataSourcesNode(config, [ArraySource({"tokens": part}) for part in parts])


def task_of(node: Any, way: str) -> Task:
    """A task that reads the batch of a round, and waits for it."""
    size = SIZES[_kind(way)]

    def read(node: Any, start: int, key: jax.Array) -> Any:
        return node.get_batch_at(start, size, key)

    if way == "jitted, closure":
        of_place = jax.jit(partial(read, node))
    else:
        of_place = partial(jax.jit(read) if way == "jitted, argument" else read, node)
    keys = list(jax.random.split(jax.random.key(0), ROUNDS[_kind(way)] + 1))
    jax.block_until_ready(keys)
    return lambda number: jax.block_until_ready(of_place(number * size, keys[number]))


def _kind(way: str) -> str:
    return way.split(",")[0]


if __name__ == "__main__":
    main()
