"""What the frame measures of a server, and how it runs an attack beside an honest reader."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.common.children import Child
from benchmarks.common.usage import cpu_seconds, memory_bytes
from benchmarks.common.work import FOLDER, ROOT

_ANSWER_S = 300.0
_LOOK_EVERY_S = 0.02
MIB = 1 << 20


class Attack(Protocol):
    """The function `attack` of a module of this package."""

    def __call__(self, address: str) -> None:
        """Attack the server at `address`, until the process is ended."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """One row: the server's own memory, and what the honest reader saw `alone` and `beside` the attack."""

    name: str
    before_bytes: int
    peak_bytes: int
    after_bytes: int
    cpu_s: float  # of the server for each second of the attack
    alone: dict[str, Any]
    beside: dict[str, Any]


def own_bytes(pid: int) -> int:
    """The memory of a process that the kernel cannot take back: anonymous pages and shared memory, no mapped files."""
    return (memory_bytes(pid, "RssAnon") or 0) + (memory_bytes(pid, "RssShmem") or 0)


def measure(name: str, *, alone_s: float, attack_s: float, rest_s: float) -> Result:
    """Measure an honest reader for `alone_s`, then beside the attack for `attack_s`, and the memory `rest_s` later."""
    with (
        Child("benchmarks.common.server", "benchmarks.attacks.server") as server,
        _honest(server.answer(_ANSWER_S)) as (honest, address),
    ):
        _read(honest, 2.0)  # warms up
        alone = _read(honest, alone_s)
        before, cpu = own_bytes(server.pid), cpu_seconds([server.pid]) or 0.0
        with _peak(server.pid) as peak, _attack(name, address):
            time.sleep(1.0)
            beside = _read(honest, attack_s)
            spent = (cpu_seconds([server.pid]) or 0.0) - cpu
        time.sleep(rest_s)
        return Result(name, before, peak[0], own_bytes(server.pid), spent / (attack_s + 1.0), alone, beside)


def _read(honest: Child, seconds: float) -> dict[str, Any]:
    honest.tell({"seconds": seconds})
    return honest.answer(_ANSWER_S)


@contextmanager
def _honest(address: str) -> Iterator[tuple[Child, str]]:
    with Child("benchmarks.common.child", "benchmarks.attacks.honest", address) as honest:
        yield honest, address


@contextmanager
def _attack(name: str, address: str) -> Iterator[None]:
    """The attack in a process of its own, which is killed at the end."""
    command = [sys.executable, "-m", "benchmarks.attacks.one", name, address]
    with (FOLDER / f"attack-{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        try:
            yield
        finally:
            process.kill()
            process.wait()


@contextmanager
def _peak(pid: int) -> Iterator[list[int]]:
    """The largest `own_bytes` of the process until the block ends."""
    peak, ended = [own_bytes(pid)], threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            peak[0] = max(peak[0], own_bytes(pid))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peak
    finally:
        ended.set()
        looking.join()
