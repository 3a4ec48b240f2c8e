"""500 clients against a server that answers 16 calls of a mixture at a time, and the 16 clients that it has room for.

`python -m benchmarks.overload`, from the root of a clone. Each client makes one call after another, as fast as it gets
answers, and does what servers tell it. A call waits for its source; so the processor is not what limits.
"""

import argparse
import logging
import multiprocessing
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from benchmarks.measure import machine
from mixserve import MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource, ServerLimits, serve
from mixserve_client import MixClient

_PROCESSES = 4  # of clients
_PATIENCE_S = 60.0
_ROWS = 4
_START_S = 120.0


class _Waits:
    """A read takes some time, however many there are at once: as of an object store."""

    def __init__(self, seconds: float):
        self._seconds = seconds

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, at: int) -> dict[str, np.ndarray]:
        return {"x": np.full(16, at, np.int32)}

    def __getitems__(self, ids: Sequence[int]) -> list[dict[str, np.ndarray]]:
        time.sleep(self._seconds)
        return [self[int(at)] for at in ids]


class _Figures(NamedTuple):
    calls: int  # that ended within the time
    failed: list[str]
    waits_s: list[float]


def _serve(told: Connection, mixtures: int, calls: int, take_s: float) -> None:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,))
    nodes = {
        f"m{i}": MixDataSourcesNode(config, [RandomAccessSource(_Waits(take_s), content_id=f"{i}")])
        for i in range(mixtures)
    }
    with serve(nodes, shared_memory=False, limits=ServerLimits(calls_per_mixture=calls)) as server:
        told.send(server.address)
        told.recv()


def _call(told: Connection, address: str, clients: int, first: int, seconds: float) -> None:
    """Has `clients` threads, each with a connection of its own, that call until the time is over."""
    logging.disable()  # many clients of one process that say the same
    failed, waits = list[str](), list[float]()
    began = threading.Barrier(clients + 1)
    until = [0.0]

    def run(number: int) -> None:
        with MixClient.connect(address, shared_memory=False, bulk=False, patience_s=_PATIENCE_S) as client:
            client.mixture("m0")
            began.wait()
            at = number << 32  # no two calls ask for the same rows
            while (now := time.monotonic()) < until[0]:
                try:
                    client.get_batch_at(at, _ROWS, 1, mixture="m0")
                except Exception as error:
                    failed.append(f"{type(error).__name__}: {error}")
                at += _ROWS
                if time.monotonic() <= until[0]:
                    waits.append(time.monotonic() - now)

    threads = [threading.Thread(target=run, args=(first + i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    told.send("ready")
    told.recv()
    until[0] = time.monotonic() + seconds
    began.wait()
    for thread in threads:
        thread.join()
    told.send(_Figures(len(waits), failed, waits))


def _measure(mixtures: int, calls: int, take_s: float, clients: int, seconds: float) -> _Figures:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs, mixtures, calls, take_s), daemon=True)
    server.start()
    try:
        if not ours.poll(_START_S):
            raise RuntimeError("the server does not start")
        address = ours.recv()
        shares = [clients // _PROCESSES + (i < clients % _PROCESSES) for i in range(_PROCESSES)]
        links, first = [context.Pipe() for _ in shares], 0
        for (_, link), share in zip(links, shares, strict=True):
            arguments = (link, address, share, first, seconds)
            context.Process(target=_call, args=arguments, daemon=True).start()
            first += share
        for link, _ in links:
            link.recv()
        for link, _ in links:
            link.send("go")
        found: list[_Figures] = [link.recv() for link, _ in links]
        return _Figures(
            sum(one.calls for one in found),
            [error for one in found for error in one.failed],
            [wait_s for one in found for wait_s in one.waits_s],
        )
    finally:
        server.kill()
        server.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--calls", type=int, default=16, help="server.limits.calls_per_mixture")
    parser.add_argument("--take-ms", type=float, default=50.0, help="how long a read of the source takes")
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    print(f"{machine()}; a read takes {given.take_ms:g} ms, {given.calls} calls at a time\n")
    print("| mixtures | clients | calls/s | of unloaded | p50 s | p99 s | longest s | failed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for mixtures in (1, 2):
        unloaded = 0.0
        for clients in (given.calls, given.clients):
            found = _measure(mixtures, given.calls, given.take_ms / 1e3, clients, given.seconds)
            rate = found.calls / given.seconds
            unloaded = unloaded or rate
            waits = " | ".join(f"{wait_s:.2f}" for wait_s in np.percentile(found.waits_s, [50, 99, 100]))
            print(
                f"| {mixtures} | {clients} | {rate:.0f} | {rate / unloaded:.2f} | {waits} | {len(found.failed)} |",
                flush=True,
            )
            for error in sorted(set(found.failed))[:3]:
                print(f"\n{error}\n")


if __name__ == "__main__":
    main()
