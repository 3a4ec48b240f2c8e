"""Records of sources on another server, beside the same sources in the server itself.

`python -m benchmarks.remote`, from the root of a clone. Results: benchmarks/results/remote.md.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.common import work
from benchmarks.common.pipes import start_server
from benchmarks.common.spread import Spread, spread
from benchmarks.measure import machine
from mixserve_client import MixClient

_MODULE = "benchmarks.remote"
_RESULTS = Path(__file__).parent / "results"
_LOCAL = "all sources here"
# How many of the four sources are remote, and how their server sends records.
_WAYS: dict[str, tuple[int, str]] = {
    _LOCAL: (0, ""),
    "one remote, shared memory": (1, "shared memory"),
    "all remote, shared memory": (4, "shared memory"),
    "one remote, bulk": (1, "bulk"),
    "all remote, bulk": (4, "bulk"),
    "all remote, gRPC": (4, "gRPC"),
}
_SIZES = (8, 256, 1024)
_OPTIONS = {
    "shared memory": {},
    "bulk": {"shared_memory": False},
    "gRPC": {"shared_memory": False, "bulk": False},
}
_NAMES = [str(number) for number in range(len(work.WEIGHTS))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of every reader in every round")
    arguments = parser.parse_args()
    work.write()
    batches, takes = list[dict[str, Any]](), list[dict[str, Any]]()
    with ExitStack() as opened:
        data = {way: start_server(_MODULE, "data", way) for way in _OPTIONS}
        clients = {
            way: opened.enter_context(_connect(way, data[how].address if how else ""))
            for way, (_, how) in _WAYS.items()
        }
        sources = _sources({way: server.address for way, server in data.items()})
        _check_equal(list(clients.values()))
        for number in track(range(-1, arguments.rounds), "rounds"):
            for size in _SIZES:
                for way, client in clients.items():
                    rate = _read(client, size, 1000 + number, arguments.seconds)
                    batches.append({"way": way, "size": size, "round": number, "records_s": rate})
                for way, take in sources.items():
                    rate = _take(take, size, number + 1, arguments.seconds)
                    takes.append({"way": way, "size": size, "round": number, "records_s": rate})
    batches, takes = ([one for one in rounds if one["round"] >= 0] for rounds in (batches, takes))
    text = _report(batches, takes, arguments.rounds, arguments.seconds)
    print(text)
    measured = {"machine": machine(), "batches": batches, "takes": takes}
    (_RESULTS / "remote.json").write_text(json.dumps(measured, indent=1) + "\n")
    (_RESULTS / "remote.md").write_text(text)


@contextmanager
def serve(what: str, way: str, address: str = "") -> Iterator[str]:
    """The server of the data, or the one that trainers read from."""
    import mixserve

    here: list[Any] = [mixserve.ArraySource({"tokens": array}) for array in work.load()]
    options: dict[str, Any] = {}
    if what == "data":
        options = _OPTIONS[way]
    else:
        here[: _WAYS[way][0]] = [mixserve.RemoteSource(address, source=name) for name in _NAMES[: _WAYS[way][0]]]
    config = mixserve.MixDataSourcesConfig(
        num_sources=len(here), weights=work.WEIGHTS, source_names=tuple(_NAMES), sampling="epoch"
    )
    node = mixserve.MixDataSourcesNode(config, here)
    with mixserve.serve({"train": node}, "127.0.0.1:0", **options) as server:
        yield server.address


@contextmanager
def _connect(way: str, data: str) -> Iterator[MixClient]:
    server = start_server(_MODULE, "front", way, data)
    with MixClient.connect(server.address) as client:
        client.get_batch_at(0, 8, 0)
        yield client


def _check_equal(clients: Sequence[MixClient]) -> None:
    """Raises ValueError if two of the servers have other batches, which then must not be compared."""
    found = {(client.mixture().fingerprint, client.get_batch_at(5, 512, 3)["tokens"].tobytes()) for client in clients}
    if len(found) != 1:
        raise ValueError("the servers have different batches")


def _sources(addresses: dict[str, str]) -> dict[str, Callable[[np.ndarray], Any]]:
    """The functions that take records of the first source, here and from its server."""
    from mixserve import ArraySource, RemoteSource

    remote = {f"remote, {way}": RemoteSource(address, source="0") for way, address in addresses.items()}
    return {_LOCAL: ArraySource({"tokens": work.load()[0]}).take} | {way: one.take for way, one in remote.items()}


def _read(client: MixClient, size: int, key: int, seconds: float) -> float:
    """Records per second of an iterator."""
    with client.batches(size, key) as batches:
        next(batches)
        count, began = 0, time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            next(batches)
            count += 1
    return count * size / taken


def _take(take: Callable[[np.ndarray], Any], size: int, seed: int, seconds: float) -> float:
    """Records per second of takes of `size` records at random, one after another."""
    choice = np.random.default_rng(seed)
    take(choice.integers(0, work.RECORDS, size))
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        take(choice.integers(0, work.RECORDS, size))
        count += 1
    return count * size / taken


def _report(batches: list[dict[str, Any]], takes: list[dict[str, Any]], count: int, seconds: float) -> str:
    lines = [
        "# Remote sources beside local ones",
        "",
        "Records of 8 KiB per second, for one client of one server, all on this machine: the trainer's server reads",
        "none, the first (a tenth of the rows) or all of its four sources from a second server, whose way of sending",
        "records is named. Medians over the rounds, and the ratio to all sources in the server itself, round by",
        "round: its median and the middle half.",
        "",
        "## Batches of a mixture",
        "",
        *_table(batches, list(_WAYS)),
        "",
        "## Records of one source at random",
        "",
        "In Python, without a mixture: `take` of so many records, one call after another.",
        "",
        *_table(takes, list(dict.fromkeys(one["way"] for one in takes))),
        "",
        f"- {machine()}; {count} rounds of {seconds} s for each reader",
    ]
    return "\n".join(lines) + "\n"


def _table(rounds: list[dict[str, Any]], ways: Sequence[str]) -> list[str]:
    lines = ["| records | | records/s | of local |", "| ---: | --- | ---: | --- |"]
    for size in _SIZES:
        local = _by_round(rounds, size, _LOCAL)
        for way in ways:
            here = _by_round(rounds, size, way)
            found, ratio = spread(list(here.values())), spread([here[at] / local[at] for at in here])
            assert found is not None
            lines.append(f"| {size} | {way} | {Spread.digits(found.median)} | {'' if way == _LOCAL else ratio} |")
    return lines


def _by_round(rounds: list[dict[str, Any]], size: int, way: str) -> dict[int, float]:
    return {one["round"]: one["records_s"] for one in rounds if one["size"] == size and one["way"] == way}


if __name__ == "__main__":
    main()
