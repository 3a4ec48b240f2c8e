"""Servers, certificates and tokens that the tests of docs/security.md share: each is made when it is first used."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, ServerTls, serve
from mixserve_client import MixClient, TlsOptions
from tests.certificates import Made, Pair
from tests.processes import ONE_SIZE
from tests.tokens.files import Tokens

RIGHTS = {role: (role, None) for role in ("reader", "trainer", "admin", "revoked")} | {"revoked": ("admin", None)}
RIGHTS |= {f"{role}-a": (role, ["a"]) for role in ("reader", "trainer", "admin")}


# A call of `compute_statistics` sets the first, and waits for the second.
BEGUN, MAY_END = threading.Event(), threading.Event()


def _statistics(batch: Any) -> dict[str, int]:
    BEGUN.set()
    assert MAY_END.wait(30)
    return {"rows": len(batch["id"])}


class World:
    """`server(name)` is a running server of the mixtures a and b, by what it has."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder, self._stack = folder, stack
        self.made = Made.in_folder(folder)
        self.tokens = Tokens(folder / "tokens.yaml", RIGHTS)
        self.tokens.write("revoked")
        rows = np.random.default_rng(0).integers(0, 1 << 30, (512, 1024), np.int32)
        config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), batch_stats_fn=_statistics, plan_sizes=ONE_SIZE)
        node = MixDataSourcesNode(config, [ArraySource({"id": rows})])
        self.nodes = {"a": node, "b": node}
        self._servers = dict[str, MixServer]()

    def server(self, name: str) -> MixServer:
        if name not in self._servers:
            self._servers[name] = self.start(**self.options(name))
        self._servers[name]._guard._failures._hosts.clear()  # each test begins without failures of its host
        return self._servers[name]

    def start(self, address: str = "127.0.0.1:0", **options: Any) -> MixServer:
        """A server that runs until the end."""
        running = serve(self.nodes, address, **{"shared_memory": False, **options})
        return self._stack.enter_context(running)

    def options(self, name: str) -> dict[str, Any]:
        """What `start` makes that server with."""
        made, ca, tokens = self.made, self.made.authority.ca, self.tokens.path
        known: dict[str, dict[str, Any]] = {
            "plain": {"health_port": 0, "metrics_port": 0},
            "tokens": {"tokens": tokens, "shared_memory": str(self.folder / "memory")},
            "mutual": {"tls": _tls(made.server, ca), "health_port": 0, "metrics_port": 0},
            "old clients": {"tls": _tls(made.server, made.old.ca)},
            "mutual and tokens": {"tls": _tls(made.server, ca), "tokens": tokens},
            "socket": {"address": f"unix://{self.folder}/socket"},
            "socket and tokens": {"address": f"unix://{self.folder}/other-socket", "tokens": tokens},
        }
        return known[name] if name in known else {"tls": _tls(getattr(made, name))}

    def own(self) -> TlsOptions:
        """Those of a client that has a certificate."""
        return TlsOptions(self.made.authority.ca, self.made.client.certificate, self.made.client.key)

    def client(self, server: MixServer, **options: Any) -> MixClient:
        return MixClient.connect(server.address, **{"patience_s": 20, "shared_memory": False, **options})


def _tls(pair: Pair, client_ca: Path | None = None) -> ServerTls:
    return ServerTls(pair.certificate, pair.key, client_ca)


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("security")
    (folder / "memory").mkdir()
    with ExitStack() as stack:
        yield World(folder, stack)


Outcome = Callable[[World], str]
