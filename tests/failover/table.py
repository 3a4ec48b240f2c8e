"""`python -m tests.failover.table`: what happens to readers when one of three replicas fails, for each way to fail.

Prints the longest wait of each reader, and of how many batches none is missing or wrong. A reader stays at one replica:
a fault is repeated until each way of reading has been at the replica that fails.
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
    """What happens to the replica at a place of the list; None: where most readers are."""

    name: str
    place: int | None = None

    def __str__(self) -> str:
        return self.name if self.place is None else f"{self.name}, place {self.place}"


FAULTS = (
    Fault("stopped (SIGSTOP)"),
    Fault("its source hangs"),
    Fault("killed"),
    Fault("link cut"),
    Fault("link stalls"),
    Fault("50 times slower"),
    *(Fault("another mixture", place) for place in range(REPLICAS)),
    *([Fault("bits flip")] * HAS_CHECKSUMS),
)


class Row(NamedTuple):
    """What one reader saw."""

    fault: Fault
    way: Way
    batches: int
    longest_s: float
    wrong: int
    late: int
    was_there: bool  # at the replica that failed


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
            place = _most(readers, addresses) if fault.place is None else fault.place
            were_there = [one.stays_at(addresses[place]) for one in readers]
            harm(replicas[place], fault)
            since = [len(one.digests) for one in readers]
            for one, begun in zip(readers, since, strict=True):
                one.wait_for(begun + after, deadline)
        finally:
            for one in readers:
                one.over.set()
            for one in readers:
                one.thread.join(1)
        config = replicas[(place + 1) % REPLICAS].config  # the source of the other one hangs, or is slow, here too
        return [
            _row(fault, one, begun, config, was_there)
            for one, begun, was_there in zip(readers, since, were_there, strict=True)
        ]


def run_each(fault: Fault, folder: Path, ways: tuple[Way, ...]) -> list[Row]:
    """Repeat the fault until a reader of each way was at the replica. Returns the rows of all readers."""
    folder.mkdir()
    rows, left = list[Row](), ways
    for number in range(len(ways)):
        rows += run(fault, folder / str(number), left)
        met = {row.way for row in rows if row.was_there or fault.place is not None}
        left = tuple(way for way in ways if way not in met)
        if not left:
            return sorted(rows, key=lambda row: ways.index(row.way))
    raise AssertionError(f"{fault}: {[way.name for way in left]} never stayed at the replica that failed")


def _most(readers: list[Reader], addresses: list[str]) -> int:
    return max(range(REPLICAS), key=lambda place: sum(one.stays_at(addresses[place]) for one in readers))


def _row(fault: Fault, one: Reader, since: int, config: Path, was_there: bool) -> Row:
    digests, waits = list(one.digests), one.waits[since - 1 :]  # its thread may still wait for a reply
    expected = list(expected_digests(config, one.key, len(digests)))
    wrong = sum(found != right for found, right in zip(digests, expected, strict=True))
    return Row(fault, one.way, len(digests), max(waits), wrong, one.late, was_there)


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
                print(f"{fault} ...", file=sys.stderr, flush=True)
                ways = tuple(way for way in WAYS if way.hedge == hedge)
                rows += run_each(fault, Path(folder) / f"{number}-{hedge}", ways)
    print("| one of three replicas | reader | there | batches | longest wait (s) | wrong or lost | DeadlineExceeded |")
    print("|---|---|---|---:|---:|---:|---:|")
    for row in rows:
        there = "yes" if row.was_there else ""
        cells = (row.fault, row.way.name, there, row.batches, f"{row.longest_s:.2f}", row.wrong, row.late)
        print("|", " | ".join(map(str, cells)), "|")
    sys.exit(any(row.wrong or row.longest_s > bound(row.way) for row in rows))


def bound(way: Way) -> float:
    """How long a trainer may wait at most, in seconds."""
    return LONGEST_HEDGED_S if way.hedge else LONGEST_S


if __name__ == "__main__":
    main()
