"""Batches from a server while it is watched, beside the same server while it notes nothing.

`python -m benchmarks.watching`, from the root of a clone. Results: benchmarks/results/watching.md.
"""

import argparse
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from benchmarks.common import work
from benchmarks.common.pipes import start_server
from benchmarks.common.reader import CALLS, read_from
from benchmarks.common.ways import table
from benchmarks.measure import machine
from benchmarks.race.ours import node
from mixserve_client import MixClient

_MODULE = "benchmarks.watching"
_RESULTS = Path(__file__).parent / "results"
_SIZES = (8, 256, 1024)
_SCRAPE_EVERY_S = 1.0
_LOOK_EVERY_S = _SETTLE_S = 0.05
# What Prometheus sends, but for the connection, which ends here with the reply.
_SCRAPE = (
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAccept-Encoding: gzip\r\n"
    b"Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4\r\n\r\n"
)
_WATCH, _WATCH_NOT = signal.SIGUSR1, signal.SIGUSR2
_ROUTES: dict[str, dict[str, Any]] = {
    "shared memory": {},
    "bulk": {"shared_memory": False},
    "gRPC": {"shared_memory": False, "bulk": False},
}
_AGAIN, _WATCHED = ", again", ", watched"


class _Way(NamedTuple):
    route: str
    how: str = ""

    def __str__(self) -> str:
        return self.route + self.how


_WAYS = [_Way(route, how) for route in _ROUTES for how in ("", _AGAIN, _WATCHED)]


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.7, help="of every iterator in every round")
    arguments = parser.parse_args()
    work.write()
    rounds: list[dict[str, Any]] = []
    with ExitStack() as opened:
        # One server for all ways, which begins to note and stops again: two processes may differ by more than notes
        # cost.
        server = start_server(_MODULE)
        address, metrics = server.address.split()
        scrape = opened.enter_context(_scraping(metrics))
        clients = {route: opened.enter_context(_connect(address, options)) for route, options in _ROUTES.items()}
        for number in track(range(-1, arguments.rounds), "rounds"):
            for size in _SIZES:
                # In turn, and the other way round in every second round: what comes first may have an advantage.
                for way in _WAYS if number % 2 else reversed(_WAYS):
                    watched = way.how == _WATCHED
                    server.process.send_signal(_WATCH if watched else _WATCH_NOT)
                    time.sleep(_SETTLE_S)  # until the server has seen the signal
                    scrape(watched)
                    figures = read_from(server, clients[way.route], size, 1000 + number, arguments.seconds)
                    scrape(False)
                    if number >= 0:
                        rounds.append({"way": str(way), "size": size, "round": number, **figures})
    text = _report(rounds, arguments.rounds, arguments.seconds)
    print(text)
    (_RESULTS / "watching.json").write_text(json.dumps({"machine": machine(), "rounds": rounds}, indent=1) + "\n")
    (_RESULTS / "watching.md").write_text(text)


@contextmanager
def serve() -> Iterator[str]:
    """A server; its address, and that of its metrics. It notes what it serves between two signals."""
    import mixserve

    notes = _notes()
    signal.signal(_WATCH, lambda *_: notes(True))
    signal.signal(_WATCH_NOT, lambda *_: notes(False))
    with mixserve.serve({"train": node()}, "127.0.0.1:0", metrics_port=0) as server:
        yield f"{server.address} {server.metrics_address}"


def _notes() -> Callable[[bool], None]:
    """What lets servers of this process note something or nothing from then on."""
    from mixserve.metrics.clients import Reader, Readers
    from mixserve.metrics.journal import Journal
    from mixserve.metrics.replies import ReplyNotes

    no_reader = Reader("", "")
    nothing: dict[tuple[type, str], Callable[..., Any]] = {
        (Journal, "note"): lambda *_: None,
        (ReplyNotes, "note"): lambda *_: None,
        (ReplyNotes, "end"): lambda *_: None,
        (Readers, "note_request"): lambda *_: no_reader,
    }
    something = {(kind, name): vars(kind)[name] for kind, name in nothing}

    def switch(on: bool) -> None:
        for (kind, name), function in (something if on else nothing).items():
            setattr(kind, name, function)

    return switch


@contextmanager
def _connect(address: str, options: dict[str, Any]) -> Iterator[MixClient]:
    with MixClient.connect(address, **options) as client:
        client.get_batch_at(0, 8, 0)
        yield client


@contextmanager
def _scraping(address: str) -> Iterator[Callable[[bool], None]]:
    """As Prometheus, but more often; counted in the time for which the function was last called with True."""
    host, _, port = address.rpartition(":")
    ended, watching = threading.Event(), threading.Event()

    def run() -> None:
        waited = 0.0
        while not ended.wait(_LOOK_EVERY_S):
            waited += _LOOK_EVERY_S if watching.is_set() else 0.0
            if waited >= _SCRAPE_EVERY_S:
                waited -= _SCRAPE_EVERY_S
                # Not by a library: this process is the reader's, whose time it would take.
                with socket.create_connection((host, int(port)), timeout=10) as connection:
                    connection.sendall(_SCRAPE)
                    while connection.recv(1 << 16):
                        pass

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda on: watching.set() if on else watching.clear()
    finally:
        ended.set()
        thread.join()


def _report(rounds: list[dict[str, Any]], count: int, seconds: float) -> str:
    lines = [
        "# A server that is watched",
        "",
        "Batches of 8 KiB records for one client, server and client in processes of their own, in turn. While it is",
        f"watched, the server notes what it serves, and its metrics are read every {_SCRAPE_EVERY_S:g} s; else it",
        "notes nothing, and *again* is the same once more, which says how far chance goes. Throughput of an iterator",
        "in GB/s, CPU seconds of both ends per GB, median of single calls in ms; medians over the rounds; then the",
        "ratio to the same way without, round by round: its median and the middle half.",
        "",
        *table(rounds, _SIZES, {str(way): str(way._replace(how="")) if way.how else None for way in _WAYS}),
    ]
    lines += ["", f"- {machine()}; {count} rounds of {seconds} s for each iterator, and of {CALLS} calls of 8 rows"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
