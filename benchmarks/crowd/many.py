"""200 clients that iterate at once, each over its own connection, and single calls at the same time."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.spread import spread
from benchmarks.common.targets import Row
from benchmarks.common.usage import cpu_seconds
from benchmarks.common.work import ROW_BYTES
from benchmarks.crowd import calling
from benchmarks.crowd.iterating import counted
from benchmarks.crowd.scenario import Outcome, Step, Window, ask, children, new_key, server
from mixserve_client import MixClient
from mixserve_client.transport import channel

MODULE = "benchmarks.crowd.many"
_PROCESSES, _CLIENTS = 4, 50
_SIZE = 8
_WARM_UP_S, _SECONDS = 4.0, 10.0


def run(_repetitions: int, step: Step) -> Outcome:
    step(f"{_PROCESSES * _CLIENTS} clients")
    with (
        server() as (address, pid),
        children(_PROCESSES, MODULE, address) as crowd,
        children(1, calling.MODULE, address) as caller,
    ):
        ask(crowd, [{"keys": []}] * _PROCESSES)  # connects all clients
        connections = _connections(address)
        window = Window.after(_WARM_UP_S, _SECONDS).asked()
        messages = [{"keys": [new_key() for _ in range(_CLIENTS)], **window} for _ in crowd]
        busy = cpu_seconds([pid]), cpu_seconds([child.pid for child in crowd])
        *progress, calls = ask([*crowd, *caller], [*messages, {"size": _SIZE, "key": new_key(), **window}])
        busy = _since(busy[0], cpu_seconds([pid])), _since(busy[1], cpu_seconds([child.pid for child in crowd]))
    batches = [count for answer in progress for count in answer["batches"]]
    speed = sum(batches) * _SIZE * ROW_BYTES / 1e9 / _SECONDS
    fairness, p99_ms = min(batches) / max(float(np.mean(batches)), 1e-9), calls["p99_s"] * 1e3
    clients = f"{len(batches)} clients at once, batches of {_SIZE}"
    rows = [
        Row(f"{clients}: the slowest's progress", "their mean", ">=", 0.9, spread([fairness])),
        Row(f"{clients}: a get_batch_at of {_SIZE} beside them, p99", "ms", "<=", 50, spread([p99_ms])),
    ]
    note = (
        f"{len(batches)} clients over {connections} connections, {_SECONDS:g} s: {speed:.3f} GB/s together, batches of "
        f"a client {min(batches)} to {max(batches)}, {np.mean(batches):.0f} on average; {calls['calls']} single calls "
        f"beside them, p50 {calls['p50_s'] * 1e3:.1f} ms, p99 {p99_ms:.1f} ms, at most {calls['max_s'] * 1e3:.1f} ms. "
        f"CPU seconds from the first batch on: the server {_seconds(busy[0])}, the clients {_seconds(busy[1])}."
    )
    return Outcome(rows, [note], {"batches": batches, "calls": calls, "connections": connections, "gigabytes_s": speed})


@contextmanager
def answering(address: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """Answer with the number of batches that each client received within a window."""
    with ExitStack() as stack:
        stack.enter_context(_own_connections())
        clients = [stack.enter_context(MixClient.connect(address, shared_memory=False)) for _ in range(_CLIENTS)]
        for client in clients:
            client.mixture()

        def answer(keys: list[int], begin: float = 0.0, seconds: float = 0.0) -> dict[str, Any]:
            if not keys:
                return {"clients": len(clients)}
            with ThreadPoolExecutor(len(clients)) as threads:
                started = threading.Barrier(len(clients))
                counts = [
                    threads.submit(_count, client, key, started, begin, begin + seconds)
                    for client, key in zip(clients, keys, strict=True)
                ]
                return {"batches": [count.result() for count in counts]}

        yield answer


@contextmanager
def _own_connections() -> Iterator[None]:
    """Clients connect with an option without which gRPC lets all channels of a process share one connection."""
    option = ("grpc.use_local_subchannel_pool", 1)
    channel._OPTIONS.append(option)
    try:
        yield
    finally:
        channel._OPTIONS.remove(option)


def _count(client: MixClient, key: int, started: threading.Barrier, begin: float, end: float) -> int:
    # The streams open together, when all threads exist.
    started.wait()
    with client.batches(_SIZE, key) as batches:
        return counted(batches, _SIZE, begin, end)


def _since(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"


def _connections(address: str) -> int | None:
    """How many TCP connections to the address are established; None if the system does not tell."""
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.exists()]
    remote = f":{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    # "01" is TCP_ESTABLISHED in Linux's table.
    return sum(row[2].endswith(remote) and row[3] == "01" for row in rows) if tables else None
