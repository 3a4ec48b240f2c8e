"""Batches with checksums beside those without, over bulk channels and over gRPC.

`python -m benchmarks.checksum`, from the root of a clone. Results: benchmarks/results/checksum.md.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from benchmarks.common import work
from benchmarks.common.pipes import Server, start_server
from benchmarks.common.reader import CALLS, read_from
from benchmarks.common.ways import table
from benchmarks.measure import machine
from mixserve_client import MixClient

_RESULTS = Path(__file__).parent / "results"
_SIZES = (8, 256, 1024)


class _Way(NamedTuple):
    bulk: bool
    checksum: bool

    def __str__(self) -> str:
        return ("bulk" if self.bulk else "gRPC") + (", checksums" if self.checksum else "")


_WAYS = [_Way(bulk, checksum) for bulk in (True, False) for checksum in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checksum", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of every iterator in every round")
    arguments = parser.parse_args()
    work.write()
    rounds: list[dict[str, Any]] = []
    # One server for all: it computes checksums only for clients that ask for them.
    server = start_server("benchmarks.race.ours", "tcp")
    with ExitStack() as opened:
        clients = {way: opened.enter_context(_connect(server, way)) for way in _WAYS}
        for number in track(range(-1, arguments.rounds), "rounds"):
            for size in _SIZES:
                for way, client in clients.items():
                    figures = read_from(server, client, size, 1000 + number, arguments.seconds)
                    if number >= 0:
                        rounds.append({"way": str(way), "size": size, "round": number, **figures})
    text = _report(rounds, arguments.rounds, arguments.seconds)
    print(text)
    (_RESULTS / "checksum.json").write_text(json.dumps({"machine": machine(), "rounds": rounds}, indent=1) + "\n")
    (_RESULTS / "checksum.md").write_text(text)


def _connect(server: Server, way: _Way) -> MixClient:
    client = MixClient.connect(server.address, shared_memory=False, bulk=way.bulk, checksum=way.checksum)
    client.get_batch_at(0, 8, 0)
    return client


def _report(rounds: list[dict[str, Any]], count: int, seconds: float) -> str:
    lines = [
        "# Checksums beside none",
        "",
        "Batches of 8 KiB records for one client over loopback TCP, server and client in processes of their own,",
        "in turn. Throughput of an iterator in GB/s, CPU seconds of both ends per GB, median of single calls in ms;",
        "medians over the rounds; then the ratio to the same way without checksums, round by round: its median and",
        "the middle half.",
        "",
        *table(
            rounds, _SIZES, {str(way): str(way._replace(checksum=False)) if way.checksum else None for way in _WAYS}
        ),
    ]
    lines += ["", f"- {machine()}; {count} rounds of {seconds} s for each iterator, and of {CALLS} calls of 8 rows"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
