"""Measures what a reply costs on this machine, at the server and at the client, over TCP: half a minute."""

import os
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from benchmarks.common.children import Child
from benchmarks.common.usage import cpu_seconds, memory_bytes
from benchmarks.fleet import serving
from benchmarks.fleet.service_times import Line, ServiceTimes, shape_of, slices_of
from mixserve_client import MixClient
from mixserve_client.schema.keys import key_words

SIZES = (1 << 20, 2 << 20, 4 << 20, 16 << 20)  # bytes of a reply: smaller batches share replies of 1 MiB
_SECONDS = 2.0  # of reading, for each size
_CALLS = 60  # of planning and gathering, for each size
_CLIENTS = 32
_LATE_BYTES, _LATE_STEPS, _LATE_S = 1 << 20, 100, 0.02
_START_S = 120.0
_CACHE = "MIXSERVE_COMPILATION_CACHE"


def calibrate() -> ServiceTimes:
    """Measure, with a server in a process of its own. Raises ChildFailed."""
    plans, gathers = _parts()
    servers, clients, gaps = list[float](), list[float](), list[float]()
    with _fresh_programs():
        cold_start_s, start_s = _start_s(), _start_s()
    with _server() as (address, pid):
        with MixClient.connect(address, shared_memory=False) as client:
            for number, size in enumerate(SIZES):
                server_s, client_s, between = _read(client, pid, size, number + 1)
                servers.append(server_s)
                clients.append(client_s)
                if size == SIZES[0]:
                    gaps += between
            next_s = slices_of(_come_late(client))
        connection_bytes = _connection_bytes(address, pid)
    plan = Line.through(SIZES, [statistics.fmean(taken) for taken in plans])
    gather = Line.through(SIZES, [statistics.fmean(taken) for taken in gathers])
    # What is left of the server's time: framing, threads and the kernel.
    rest = [max(1e-6, whole - plan.at(size) - gather.at(size)) for whole, size in zip(servers, SIZES, strict=True)]
    return ServiceTimes(
        plan,
        gather,
        Line.through(SIZES, rest),
        Line.through(SIZES, clients),
        shape_of([value for taken in plans for value in _relative(taken)]),
        shape_of([value for taken in gathers for value in _relative(taken)]),
        shape_of(gaps),
        next_s,
        _socket_bytes(),
        round(start_s, 2),
        round(cold_start_s, 2),
        connection_bytes,
    )


@contextmanager
def _server() -> Iterator[tuple[str, int]]:
    with Child("benchmarks.common.server", "benchmarks.fleet.serving", "arrays") as child:
        yield child.answer(_START_S), child.pid


def _parts() -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of planning and of gathering, in one thread, for each size; time of the processor, not of the clock."""
    mixture, words = serving.node("arrays").mixture, key_words(1)
    plans, gathers = list[list[float]](), list[list[float]]()
    for size in SIZES:
        rows = size // serving.ROW_BYTES
        out = {"tokens": np.empty((rows, serving.ROW_BYTES // 4), np.int32)}
        planned, gathered = list[float](), list[float]()
        for number in range(-3, _CALLS):
            began = time.thread_time()
            plan = mixture.blocks.plan(words, [((number + 3) * rows, rows)])
            middle = time.thread_time()
            mixture.host_gather.into(plan, out)
            if number >= 0:
                planned.append(middle - began)
                gathered.append(time.thread_time() - middle)
        plans.append(planned)
        gathers.append(gathered)
    return plans, gathers


def _read(client: MixClient, pid: int, size: int, key: int) -> tuple[float, float, list[float]]:
    """Processor seconds of server and client for a reply, and the seconds between replies."""
    with client.batches(size // serving.ROW_BYTES, key) as batches:
        for _ in range(8):
            next(batches)
        gaps = list[float]()
        server_s, own = _server_s(pid), resource.getrusage(resource.RUSAGE_SELF)
        began = last = time.perf_counter()
        while last - began < _SECONDS:
            next(batches)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now
        after = resource.getrusage(resource.RUSAGE_SELF)
        client_s = after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
        return (_server_s(pid) - server_s) / len(gaps), client_s / len(gaps), gaps


def _come_late(client: MixClient) -> list[float]:
    """Seconds of a `next` after a step in which its batch has come."""
    waits = list[float]()
    with client.batches(_LATE_BYTES // serving.ROW_BYTES, key=0) as batches:
        for _ in range(_LATE_STEPS):
            began = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - began)
            time.sleep(_LATE_S)
    return waits[5:]


def _server_s(pid: int) -> float:
    found = cpu_seconds([pid])
    if found is None:
        raise RuntimeError("this needs /proc: Linux")
    return found


def _connection_bytes(address: str, pid: int) -> int:
    """A server's memory for each client that is connected and has read a batch; the kernel's is not counted."""
    before = memory_bytes(pid, "VmRSS") or 0
    clients = [MixClient.connect(address, shared_memory=False) for _ in range(_CLIENTS)]
    try:
        readers = [client.batches(16, key, prefetch=1) for key, client in enumerate(clients)]
        for reader in readers:
            next(reader)
        return max(0, (memory_bytes(pid, "VmRSS") or 0) - before) // _CLIENTS
    finally:
        for client in clients:
            client.close()


def _socket_bytes() -> int:
    """What fits into a connection whose reader does not read."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sender = socket.create_connection(listening.getsockname())
        receiver, _ = listening.accept()
        with sender, receiver:
            sender.setblocking(False)
            sent, data = 0, bytes(64 << 10)
            for _ in range(50):  # the kernel moves what it has from one end to the other
                with suppress(BlockingIOError):
                    while True:
                        sent += sender.send(data)
                time.sleep(0.01)
    return sent


def _start_s() -> float:
    """How long a server takes from its command to its address."""
    began = time.monotonic()
    with _server():
        return time.monotonic() - began


@contextmanager
def _fresh_programs() -> Iterator[None]:
    """Servers have an empty folder of compiled programs at first."""
    before = os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_CACHE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[_CACHE]
            else:
                os.environ[_CACHE] = before


def _relative(taken: list[float]) -> list[float]:
    mean = statistics.fmean(taken)
    return [value / mean for value in taken]
