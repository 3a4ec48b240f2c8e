"""Batches from a server that is watched beside one that notes nothing.

`python -m benchmarks.watching`, from the root of a clone. Results: benchmarks/results/watching.md.
"""

import argparse
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from benchmarks.common import work
from benchmarks.common.pipes import Server, start_server
from benchmarks.common.reader import CALLS, read_from
from benchmarks.common.ways import table
from benchmarks.measure import machine
from benchmarks.race.ours import node
from mixserve_client import MixClient

_MODULE = "benchmarks.watching"
_RESULTS = Path(__file__).parent / "results"
_SIZES = (8, 256, 1024)
_SCRAPE_EVERY_S = 1.0
_ROUTES: dict[str, dict[str, Any]] = {
    "shared memory": {},
    "bulk": {"shared_memory": False},
    "gRPC": {"shared_memory": False, "bulk": False},
}


class _Way(NamedTuple):
    route: str
    watched: bool

    def __str__(self) -> str:
        return self.route + (", watched" if self.watched else "")


_WAYS = [_Way(route, watched) for route in _ROUTES for watched in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.7, help="of every iterator in every round")
    arguments = parser.parse_args()
    work.write()
    rounds: list[dict[str, Any]] = []
    with ExitStack() as opened:
        servers = {watched: start_server(_MODULE, "watched" if watched else "alone") for watched in (False, True)}
        opened.enter_context(_scraping(servers[True].address.split()[1]))
        clients = {way: opened.enter_context(_connect(servers[way.watched], way)) for way in _WAYS}
        for number in track(range(-1, arguments.rounds), "rounds"):
            for size in _SIZES:
                # In turn, and the other way round in every second round: what comes first may have an advantage.
                for way in _WAYS if number % 2 else reversed(_WAYS):
                    server = servers[way.watched]
                    figures = read_from(server, clients[way], size, 1000 + number, arguments.seconds)
                    if number >= 0:
                        rounds.append({"way": str(way), "size": size, "round": number, **figures})
    text = _report(rounds, arguments.rounds, arguments.seconds)
    print(text)
    (_RESULTS / "watching.json").write_text(json.dumps({"machine": machine(), "rounds": rounds}, indent=1) + "\n")
    (_RESULTS / "watching.md").write_text(text)


@contextmanager
def serve(how: str) -> Iterator[str]:
    """A server; its address, and that of its metrics if there are any."""
    import mixserve

    if how == "alone":
        _note_nothing()
    with mixserve.serve({"train": node()}, "127.0.0.1:0", metrics_port=0 if how == "watched" else None) as server:
        yield f"{server.address} {server.metrics_address}"


def _note_nothing() -> None:
    """Servers that this process starts from now on count nothing."""
    from mixserve.metrics.journal import Journal

    Journal.note = lambda self, note: None  # noqa: ARG005


@contextmanager
def _connect(server: Server, way: _Way) -> Iterator[MixClient]:
    with MixClient.connect(server.address.split()[0], **_ROUTES[way.route]) as client:
        client.get_batch_at(0, 8, 0)
        yield client


@contextmanager
def _scraping(address: str) -> Iterator[None]:
    """As Prometheus, but more often."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(_SCRAPE_EVERY_S):
            urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _report(rounds: list[dict[str, Any]], count: int, seconds: float) -> str:
    lines = [
        "# A server that is watched",
        "",
        "Batches of 8 KiB records for one client, server and client in processes of their own, in turn. The watched",
        f"server notes what it serves, and its metrics are read every {_SCRAPE_EVERY_S:g} s; the other one notes",
        "nothing. Throughput of an iterator in GB/s, CPU seconds of both ends per GB, median of single calls in ms;",
        "medians over the rounds; then the ratio to the same way without, round by round: its median and the middle",
        "half.",
        "",
        *table(rounds, _SIZES, {str(way): str(way._replace(watched=False)) if way.watched else None for way in _WAYS}),
    ]
    lines += ["", f"- {machine()}; {count} rounds of {seconds} s for each iterator, and of {CALLS} calls of 8 rows"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
