"""Batches from a server with TLS, and with TLS, client certificates and tokens, beside one in plain text.

`python -m benchmarks.tls`, from the root of a clone; needs the command openssl. Results: benchmarks/results/tls.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.common import work
from benchmarks.common.pipes import start_server
from benchmarks.common.reader import CALLS, read
from benchmarks.common.ways import table
from benchmarks.measure import machine
from benchmarks.race.ours import node
from mixserve_client import MixClient, TlsOptions

_MODULE = "benchmarks.tls"
_RESULTS = Path(__file__).parent / "results"
_WAYS = {
    "plain": "plain text",
    "tls": "TLS",
    "all": "TLS, client certificates and tokens",
}
_SIZES = (8, 256, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of every iterator in every round")
    arguments = parser.parse_args()
    work.write()
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        _make_certificates(folder)
        token = subprocess.run(
            [
                sys.executable,
                "-m",
                "mixserve",
                "token",
                "new",
                "reader",
                "--file",
                str(folder / "tokens.yaml"),
                "--name",
                "trainer",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()[-1]
        clients = {way: opened.enter_context(_connect(way, folder, token)) for way in _WAYS}
        for number in track(range(-1, arguments.rounds), "rounds"):
            for size in _SIZES:
                for way, client in clients.items():
                    figures = read(client, size, 1000 + number, arguments.seconds, time.process_time)
                    if number >= 0:
                        rounds.append({"way": way, "size": size, "round": number, **figures})
    text = _report(rounds, arguments.rounds, arguments.seconds)
    print(text)
    (_RESULTS / "tls.json").write_text(json.dumps({"machine": machine(), "rounds": rounds}, indent=1) + "\n")
    (_RESULTS / "tls.md").write_text(text)


@contextmanager
def serve(way: str, folder: str) -> Iterator[str]:
    import mixserve

    here = Path(folder)
    tls = {"certificate": here / "server.pem", "key": here / "server.key"}
    options: dict[str, Any] = {} if way == "plain" else {"tls": tls}
    if way == "all":
        options = {"tls": tls | {"client_ca": here / "ca.pem"}, "tokens": here / "tokens.yaml"}
    with mixserve.serve({"train": node()}, "localhost:0", **options) as server:
        yield server.address


@contextmanager
def _connect(way: str, folder: Path, token: str) -> Iterator[MixClient]:
    server = start_server(_MODULE, way, str(folder))
    options: dict[str, Any] = {} if way == "plain" else {"tls": folder / "ca.pem"}
    if way == "all":
        tls = TlsOptions(ca=folder / "ca.pem", certificate=folder / "client.pem", key=folder / "client.key")
        options = {"tls": tls, "token": token}
    with MixClient.connect(server.address, shared_memory=False, **options) as client:
        client.get_batch_at(0, 8, 0)
        yield client


def _report(rounds: list[dict[str, Any]], count: int, seconds: float) -> str:
    lines = [
        "# TLS beside plain text",
        "",
        "Batches of 8 KiB records for one client over loopback TCP, server and client in processes of their own,",
        "in turn. Throughput of an iterator in GB/s, the client's CPU seconds per GB, median of single calls in ms;",
        "medians over the rounds; then the ratio to plain text, round by round: its median and the middle half.",
        "",
        *table(
            [one | {"way": _WAYS[one["way"]]} for one in rounds],
            _SIZES,
            {name: None if way == "plain" else _WAYS["plain"] for way, name in _WAYS.items()},
        ),
    ]
    lines += ["", f"- {machine()}; {count} rounds of {seconds} s for each iterator, and of {CALLS} calls of 8 rows"]
    return "\n".join(lines) + "\n"


def _make_certificates(folder: Path) -> None:
    def run(*command: str) -> None:
        subprocess.run(["openssl", *command], check=True, capture_output=True, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("req", "-x509", *key, "-days", "2", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=benchmark")
    for name in ("server", "client"):
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", "-addext", names)
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy", "-days", "2")
        run("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")


if __name__ == "__main__":
    main()
