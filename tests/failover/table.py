"""`python -m tests.failover.table`: what happens to readers when one of three replicas fails, for each way to fail.

Prints the longest wait of each reader, and of how many batches none is missing or wrong.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from tests.chaos.replicas import MIXTURE, Replica, running
from tests.chaos.trainer import HAS_CHECKSUMS, digest
from tests.failover.readers import SIZE, WAYS, Reader, Way

REPLICAS = 3
ATTEMPT_S = 5.0
BEFORE, AFTER = 20, 60  # batches
KEY = 100
LONGEST_S, LONGEST_HEDGED_S = 6.0, 1.0
DEADLINE_S = 60


class Fault(NamedTuple):
    """What happens to the replica at a place of the list."""

    name: str
    place: int


FAULTS = (
    Fault("stopped (SIGSTOP)", 0),
    Fault("its source hangs", 0),
    Fault("killed", 0),
    Fault("link cut", 0),
    Fault("link stalls", 0),
    Fault("50 times slower", 0),
    *(Fault("another mixture", place) for place in range(REPLICAS)),
    *([Fault("bits flip", 0)] * HAS_CHECKSUMS),
)


class Row(NamedTuple):
    """What one reader saw."""

    fault: Fault
    way: Way
    batches: int
    longest_s: float
    wrong: int
    late: int


def harm(replica: Replica, fault: Fault) -> None:
    """It lasts."""
    match fault.name:
        case "stopped (SIGSTOP)":
            replica.stop()
        case "its source hangs":
            replica.mark("hang")
        case "killed":
            replica.kill()
        case "link cut":
            replica.proxy.cut()
        case "link stalls":
            replica.proxy.stall()
        case "50 times slower":
            replica.mark("slow", "0.1")
        case "another mixture":
            replica.kill()
            replica.start(other=True)
        case "bits flip":
            replica.proxy.flip_bits(1e-4)
        case _:
            raise ValueError(fault)


def run(
    fault: Fault, folder: Path, ways: tuple[Way, ...] = WAYS, attempt_s: float = ATTEMPT_S, after: int = AFTER
) -> list[Row]:
    """Let readers run, harm a replica, and let them go on."""
    folder.mkdir(exist_ok=True)
    with running(folder, REPLICAS) as replicas:
        addresses = [replica.proxy.address for replica in replicas]
        readers = [Reader(way, addresses, KEY + number, attempt_s) for number, way in enumerate(ways)]
        try:
            for one in readers:
                one.start()
            deadline = time.monotonic() + DEADLINE_S
            for one in readers:
                one.wait_for(BEFORE, deadline)
            harm(replicas[fault.place], fault)
            since = [len(one.digests) for one in readers]
            for one, begun in zip(readers, since, strict=True):
                one.wait_for(begun + after, deadline)
        finally:
            for one in readers:
                one.over.set()
            for one in readers:
                one.thread.join(1)
        return [_row(fault, one, begun, replicas[-1].config) for one, begun in zip(readers, since, strict=True)]


def _row(fault: Fault, one: Reader, since: int, config: Path) -> Row:
    expected = list(expected_digests(config, one.key, len(one.digests)))
    wrong = sum(found != right for found, right in zip(one.digests, expected, strict=True))
    return Row(fault, one.way, len(one.digests), max(one.waits[since - 1 :]), wrong, one.late)


def expected_digests(config: Path, key: int, count: int, **options: Any) -> Iterator[str]:
    """Of the batches of a node in this process."""
    node = build_nodes(load_config(config), config)[MIXTURE]
    with local_client({MIXTURE: node}) as near:
        for number in range(count):
            yield digest(near.get_batch_at(number * SIZE, SIZE, key, **options))


def main() -> None:
    """Print the table. Ends with 1 if a bound does not hold."""
    logging.basicConfig(level=logging.ERROR)
    rows = list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        for number, fault in enumerate(FAULTS):
            for hedge in (False, True):
                print(f"{fault.name}, place {fault.place} ...", file=sys.stderr, flush=True)
                ways = tuple(way for way in WAYS if way.hedge == hedge)
                rows += run(fault, Path(folder) / f"{number}-{hedge}", ways)
    print("| one of three replicas | reader | batches | longest wait (s) | wrong or lost | DeadlineExceeded |")
    print("|---|---|---:|---:|---:|---:|")
    for row in rows:
        where = f"{row.fault.name}, place {row.fault.place}"
        print(f"| {where} | {row.way.name} | {row.batches} | {row.longest_s:.2f} | {row.wrong} | {row.late} |")
    sys.exit(any(row.wrong or row.longest_s > bound(row.way) for row in rows))


def bound(way: Way) -> float:
    """How long a trainer may wait at most, in seconds."""
    return LONGEST_HEDGED_S if way.hedge else LONGEST_S


if __name__ == "__main__":
    main()
