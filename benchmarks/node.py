"""Eager `get_batch_at` at 1 to 256 sources over the same data: planning, gathering, memory, compilations.

reference_node.py compares with the reference's own implementation, in its own environment.
"""

import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from measure import in_turn, machine, peak_above_bytes, ratio, report, resident_bytes
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode
from mixserve.mixture.plan import Plan
from mixserve.mixture.programs import load

SIZE, ROW = 256, 2048  # 256 records of 8 KiB
RECORDS = 32_768  # 256 MiB over all sources
BATCH_BYTES = SIZE * ROW * 4
COUNTS = (1, 2, 8, 32, 256)
ROUNDS = 201


def make_node(count: int, data: np.ndarray) -> MixDataSourcesNode:
    sources = [ArraySource({"tokens": part}) for part in np.split(data, count)]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=count, weights=(1.0,) * count), sources)


def bare_draw(key, start, log_weights, lengths):
    """The five steps of the reference, written down directly, for SIZE positions."""

    def one(position):
        source_key, record_key, _ = jax.random.split(jax.random.fold_in(key, position), 3)
        source = jax.random.categorical(source_key, log_weights)
        return source, jax.random.randint(record_key, (), 0, lengths[source], dtype=jnp.int32)

    return jax.vmap(one)(start + jnp.arange(SIZE, dtype=jnp.int32))


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        print(peak_of_batches(int(sys.argv[2])))
        return
    data = make_data()
    make_node(1, data)  # JAX's one-time memory does not belong to a node
    before = resident_bytes()
    nodes = {count: make_node(count, data) for count in COUNTS}
    copied = resident_bytes() - before
    planned: dict[int, Plan] = {}
    tasks = {}
    for count, node in nodes.items():
        load(node.mixture.planner.programs(first=False))
        log_weights, lengths = jnp.asarray(node.mixture.planner.log_weights), jnp.asarray(node.mixture.planner.lengths)
        out = {"tokens": np.empty((SIZE, ROW), np.int32)}
        draw = jax.jit(bare_draw)

        def plan(number, count=count, planner=node.mixture.planner):
            planned[count] = planner.plan(np.array([0, number], np.uint32), number * SIZE, SIZE)

        def bare(number, draw=draw, log_weights=log_weights, lengths=lengths):
            jax.tree.map(np.asarray, draw(jax.random.wrap_key_data(words(number)), number * SIZE, log_weights, lengths))

        def gather(_number, count=count, into=node.mixture.host_gather.into, out=out):
            into(planned[count], out)

        def whole(number, node=node):
            jax.block_until_ready(node.get_batch_at(number * SIZE, SIZE, words(number)))

        tasks |= {f"plan {count}": plan, f"bare {count}": bare, f"gather {count}": gather, f"whole {count}": whole}
    taken = in_turn(tasks, ROUNDS)
    rows = []
    for count, node in track(nodes.items(), "measuring memory and compilations"):
        child = [sys.executable, __file__, "--peak", str(count)]
        peaks = [int(subprocess.check_output(child)) / BATCH_BYTES for _ in range(3)]
        rows.append(
            {
                "sources": count,
                "get_batch_at ms": milliseconds(taken[f"whole {count}"]),
                "plan ms": milliseconds(taken[f"plan {count}"]),
                "bare draw ms": milliseconds(taken[f"bare {count}"]),
                "plan / bare draw": ratio(taken[f"plan {count}"], taken[f"bare {count}"]),
                "gather ms": milliseconds(taken[f"gather {count}"]),
                "gather / that of 1 source": ratio(taken[f"gather {count}"], taken["gather 1"]),
                "peak memory / batch": f"{statistics.median(peaks):.1f} (up to {max(peaks):.1f})",
                "compilations for 200 sizes": compilations(node),
            }
        )
    notes = [
        f"{SIZE} records of {ROW * 4} bytes of {data.nbytes >> 20} MiB; {ROUNDS} rounds in turn; medians, quartiles.",
        f"Making the five nodes over {data.nbytes / 1e6:.0f} MB of data took {copied / 1e6:.1f} MB of resident memory.",
        "Peak memory: above the data and a node that has answered once, over 20 batches; three processes, median.",
        "The bare draw is the reference's five steps, vmapped and jitted for this very size, with its key made anew.",
        machine(),
    ]
    report("node", "The node, eager", rows, notes)


def make_data() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 30, (RECORDS, ROW), np.int32)


def peak_of_batches(count: int) -> int:
    """How far resident memory rises while batches are read, in bytes."""
    node = make_node(count, make_data())
    load(node.mixture.planner.programs(first=False))
    node.get_batch_at(0, 1, words(0))

    def read() -> None:
        for number in range(20):
            jax.block_until_ready(node.get_batch_at(number * SIZE, SIZE, words(number)))

    return peak_above_bytes(read)


def words(number: int) -> np.ndarray:
    return np.array([0, number], np.uint32)


def milliseconds(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.2f}"


def compilations(node: MixDataSourcesNode) -> int:
    """How many programs XLA compiles for requests of 200 random sizes."""
    counted = []
    listening = [True]

    def count(event: str, _seconds: float, **_: object) -> None:
        if listening[0] and event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    for size in np.random.default_rng(1).integers(1, 5000, 200).tolist():
        node.get_batch_at(0, size, words(0))
    listening[0] = False
    return len(counted)


if __name__ == "__main__":
    main()
