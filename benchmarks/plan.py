"""Positions planned per second in both modes, and the share of planning in whole requests over TCP.

`python benchmarks/plan.py`; the results go to benchmarks/results/plan.{md,json}.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from rich.progress import track

from measure import in_turn, machine, peak_above_bytes, report
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve.mixture import blocks
from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.leaves import AnyPlanner
from mixserve.mixture.programs import load
from mixserve_client import MixClient

COUNTS, REQUEST_COUNTS = (2, 32, 1000), (4, 32, 1000)
MODES = ("categorical", "epoch")
SIZE, ROW = 256, 2048  # 256 records of 8 KiB
ROUNDS, BATCHES, SUCCESSIVE = 15, 100, 256


def make_node(count: int, mode: str, records: int = 20_000) -> MixDataSourcesNode:
    rng = np.random.default_rng(count)
    data = np.zeros((records, 1), np.int8)
    return _node([ArraySource({"x": data[: rng.integers(records // 2, records)]}) for _ in range(count)], mode)


def make_large_node(count: int, mode: str) -> MixDataSourcesNode:
    data = np.random.default_rng(0).integers(0, 1 << 30, (32_000, ROW), np.int32)
    return _node([ArraySource({"tokens": part}) for part in np.array_split(data, count)], mode)


def _node(sources: list[ArraySource], mode: str) -> MixDataSourcesNode:
    weights = tuple(np.random.default_rng(1).random(len(sources)).tolist())
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=len(sources), weights=weights, sampling=mode), sources)


def key(number: int) -> np.ndarray:
    return np.array([1, number], np.uint32)


def planning() -> list[dict[str, object]]:
    """Positions per second: successive batches of 256, batches at random positions, and 65,536 at once."""
    tasks: dict[str, Callable[[int], object]] = {}
    planners: dict[str, AnyPlanner] = {}
    for count in COUNTS:
        for mode in MODES:
            planner = planners[f"{mode} {count}"] = make_node(count, mode).mixture.planner
            load(planner.programs(first=False))

            def on(number: int, planner: AnyPlanner = planner) -> None:
                plans = PlanBlocks(planner)
                for batch in range(SUCCESSIVE):
                    plans.plan(key(number), [(batch * SIZE, SIZE)])

            def at_random(number: int, planner: AnyPlanner = planner) -> None:
                for batch in range(16):
                    planner.plan(key(number), batch * 1_000_003 + number, SIZE)

            def at_once(number: int, planner: AnyPlanner = planner) -> None:
                planner.plan(key(number), 0, 1 << 16)

            tasks |= {f"on {mode} {count}": on, f"random {mode} {count}": at_random, f"once {mode} {count}": at_once}
    taken = in_turn(tasks, ROUNDS)
    return [
        {
            "sources": count,
            "mode": mode,
            "successive batches of 256, M/s": _millions(taken[f"on {mode} {count}"], SUCCESSIVE * SIZE),
            "batches of 256 at random, M/s": _millions(taken[f"random {mode} {count}"], 16 * SIZE),
            "65,536 at once, M/s": _millions(taken[f"once {mode} {count}"], 1 << 16),
            "peak memory of that, MiB": _peak_mib(mode, count),
        }
        for count in COUNTS
        for mode in MODES
    ]


def _peak_mib(mode: str, count: int) -> str:
    """How far memory rises while 65,536 positions are planned, in a process that has planned 16."""
    child = [sys.executable, __file__, "--peak", mode, str(count)]
    return f"{int(subprocess.check_output(child)) / 2**20:.1f}"


def peak_bytes(mode: str, count: int) -> int:
    planner = make_node(count, mode).mixture.planner
    load(planner.programs(first=False))
    planner.plan(key(0), 0, 16)
    return peak_above_bytes(lambda: planner.plan(key(1), 0, 1 << 16))


def requests() -> list[dict[str, object]]:
    """The share of planning in the time of a request over TCP, per kind of access."""
    rows: list[dict[str, object]] = []
    for count in track(REQUEST_COUNTS, "requests over TCP"):
        for mode in MODES:
            with (
                serve({"train": make_large_node(count, mode)}) as server,
                time_planning() as planned,
                MixClient.connect(server.address, shared_memory=False) as client,
            ):
                shares = {"iterator": [], "successive calls": [], "random calls": []}
                for number in range(ROUNDS):
                    for way, ask in ways(client, number).items():
                        next(ask)
                        planned.clear()
                        began = time.perf_counter()
                        for _ in zip(range(BATCHES), ask, strict=False):
                            pass
                        shares[way].append(sum(planned) / (time.perf_counter() - began))
                        ask.close()
            cells = {f"planning / {way}": _percent(values) for way, values in shares.items()}
            rows.append({"sources": count, "mode": mode, **cells})
    return rows


def ways(client: MixClient, number: int) -> dict[str, Iterator[object]]:
    words = key(number)
    random = np.random.default_rng(number).integers(0, 1 << 40, BATCHES + 1).tolist()
    return {
        "iterator": (batch for batch in client.batches(SIZE, words)),
        "successive calls": (client.get_batch_at(place * SIZE, SIZE, words) for place in range(1 << 30, 1 << 31)),
        "random calls": (client.get_batch_at(place, SIZE, words) for place in random),
    }


@contextmanager
def time_planning() -> Iterator[list[float]]:
    """Collect the seconds of each plan of the server, which runs in this process; includes time of other threads."""
    planned: list[float] = []
    plain = PlanBlocks.plan

    def timed(self: PlanBlocks, *args: object) -> object:
        began = time.perf_counter()
        try:
            return plain(self, *args)  # type: ignore[arg-type]
        finally:
            planned.append(time.perf_counter() - began)

    # On the class: the server makes instances of its own.
    blocks.PlanBlocks.plan = timed  # type: ignore[method-assign,assignment]
    try:
        yield planned
    finally:
        blocks.PlanBlocks.plan = plain  # type: ignore[method-assign]


def _millions(seconds: list[float], positions: int) -> str:
    return _spread([positions / taken / 1e6 for taken in seconds], "{:.2f}")


def _percent(shares: list[float]) -> str:
    return _spread([100 * share for share in shares], "{:.1f}") + " %"


def _spread(values: list[float], form: str) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{form.format(statistics.median(values))} ({form.format(low)} to {form.format(high)})"


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        print(peak_bytes(sys.argv[2], int(sys.argv[3])))
        return
    notes = [
        f"{ROUNDS} rounds in turn; medians and quartiles; {machine()}.",
        "Successive batches are planned in blocks, as for readers that go on; at random each is planned alone.",
    ]
    report("plan", "Positions planned per second, in millions", planning(), notes)
    notes = [
        f"Batches of {SIZE} records of {ROW * 4} bytes over TCP, server and client in one process, {BATCHES} batches a "
        f"round, {ROUNDS} rounds; medians and quartiles of the time in plans over the time of all.",
        machine(),
    ]
    report("plan_share", "The share of planning in requests", requests(), notes)


if __name__ == "__main__":
    main()
