"""`python -m tests.rolling.upgrade`: three replicas are replaced one by one under trainers, also through proxies.

Prints the longest wait of each trainer for a batch, and of how many batches none is missing or wrong.
"""

import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.failover.readers import Reader, Way
from tests.failover.table import expected_digests
from tests.ports import free_ports
from tests.processes import ServerProcess
from tests.proxies.running import ROUTES, Backend, Route, Running, running, why_not

REPLICAS = 3
KEY = 300
BATCHES = 60  # between two replacements
ATTEMPT_S = 5.0
DEADLINE_S = 180
LONGEST_S = 1.0  # directly
WAYS = (
    Way(bulk=False, timeout_s=None, reads="iterator", hedge=False),
    Way(bulk=True, timeout_s=None, reads="iterator", hedge=False),
    Way(bulk=False, timeout_s=None, reads="calls", hedge=False),
    Way(bulk=True, timeout_s=20.0, reads="iterator", hedge=False),
)
# A batch of 1 MiB: a stream has 16 of them, so that each trainer opens several between two replacements.
LENGTH = 65_536
_CONFIG = """
mixtures:
  train:
    sources: {{tokens: {{kind: tokens, path: tokens.bin, dtype: uint16, sequence_length: {length}, weight: 1}}}}
server:
  host: {host}
  port: {port}
  bulk_port: {bulk_port}
  health_host: {host}
  health_port: {health_port}
  insecure: true
"""
PLAIN = tuple(route for route in ROUTES if not route.tls)


class Row(NamedTuple):
    """What one trainer saw."""

    way: Way
    batches: int
    longest_s: float
    wrong: int
    late: int


class Server:
    """A replica in a process of its own, at an address of its own of this host."""

    def __init__(self, folder: Path, place: int, ports: tuple[int, int, int]):
        folder.mkdir()
        port, health_port, bulk_port = ports
        self.host = f"127.0.0.{place + 2}"
        self.backend = Backend(self.host, port, health_port)
        np.random.default_rng(0).integers(0, 1 << 16, 100 * LENGTH).astype(np.uint16).tofile(folder / "tokens.bin")
        self.config = folder / "mixture.yaml"
        self.config.write_text(
            _CONFIG.format(length=LENGTH, host=self.host, port=port, bulk_port=bulk_port, health_port=health_port)
        )
        self.start()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.backend.port}"

    def start(self) -> None:
        self.process = ServerProcess(self.config, "--grace-s", "20")

    def wait(self) -> None:
        """Return when it serves."""
        self.process.address()

    def replace(self) -> None:
        """SIGTERM, and another process at its end; returns when that serves."""
        assert self.process.terminate() == 0
        self.start()
        self.wait()


@contextmanager
def servers(folder: Path) -> Iterator[list[Server]]:
    """Three replicas that serve, at the same ports of three addresses."""
    ports = free_ports(), free_ports(), free_ports()
    with ExitStack() as opened:
        made = list[Server]()
        for place in range(REPLICAS):
            made.append(Server(folder / f"replica-{place}", place, ports))
            opened.callback(lambda one=made[-1]: one.process.kill())
        for one in made:
            one.wait()
        yield made


def run(route: Route | None, folder: Path, batches: int = BATCHES) -> list[Row]:
    """Replace the replicas under trainers that reach them through a proxy, or with None as a list."""
    folder.mkdir(exist_ok=True)
    with ExitStack() as opened:
        replicas = opened.enter_context(servers(folder))
        proxy = None
        if route is not None:
            proxy = opened.enter_context(running(route, folder, [one.backend for one in replicas], None))
        addresses = [one.address for one in replicas] if proxy is None else [proxy.address]
        return replace_all(addresses, [one.replace for one in replicas], replicas[0].config, batches, proxy)


def replace_all(
    addresses: list[str],
    replacements: Sequence[Callable[[], None]],
    config: Path,
    batches: int,
    proxy: Running | None = None,
) -> list[Row]:
    """Let trainers read while one replica is replaced after another. Raises what a trainer raised."""
    readers = [Reader(way, addresses, KEY + number, ATTEMPT_S) for number, way in enumerate(WAYS)]
    deadline = time.monotonic() + DEADLINE_S
    try:
        for one in readers:
            one.start()
        for one in readers:
            one.wait_for(batches, deadline)
        first = [len(one.digests) for one in readers]
        for replace in replacements:
            replace()
            if proxy is not None:
                proxy.wait_for(REPLICAS)  # as whoever replaces them waits for each to be ready
            since = [len(one.digests) for one in readers]
            for one, begun in zip(readers, since, strict=True):
                one.wait_for(begun + batches, deadline)
    finally:
        for one in readers:
            one.over.set()
        for one in readers:
            one.thread.join(DEADLINE_S)
    return [_row(one, since, config) for one, since in zip(readers, first, strict=True)]


def _row(one: Reader, since: int, config: Path) -> Row:
    expected = expected_digests(config, one.key, len(one.digests))
    wrong = sum(found != right for found, right in zip(one.digests, expected, strict=True))
    return Row(one.way, len(one.digests), max(one.waits[since - 1 :]), wrong, one.late)


def main() -> None:
    """Print the table. Ends with 1 if a batch is wrong, or a bound does not hold."""
    logging.basicConfig(level=logging.ERROR)
    failed = False
    print("| replicas are reached | trainer | batches | longest wait (s) | wrong or lost | DeadlineExceeded |")
    print("|---|---|---:|---:|---:|---:|")
    for route in (None, *PLAIN):
        name = "directly, as a list" if route is None else route.name
        if route is not None and (why := why_not(route.proxy)):
            print(f"SKIPPED: {name}: {why}", file=sys.stderr)
            continue
        folder = Path(tempfile.mkdtemp())
        try:
            for row in run(route, folder / "replicas"):
                print(
                    f"| {name} | {row.way.name} | {row.batches} | {row.longest_s:.2f} | {row.wrong} | {row.late} |",
                    flush=True,
                )
                failed |= bool(row.wrong or row.late or (route is None and row.longest_s > LONGEST_S))
        finally:
            shutil.rmtree(folder)
    sys.exit(failed)


if __name__ == "__main__":
    main()
