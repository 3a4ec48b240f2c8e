"""A cluster of Ray on this machine, mixtures for fleets on it, and trainers that read them."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import ray
from ray.cluster_utils import Cluster

from mixserve import MixDataSourcesNode
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve.ray import Fleet, up
from mixserve_client import MixClient
from mixserve_client.transport.ray_controller import NAMESPACE
from tests.processes import write_mixture

DEADLINE_S = 120
FOLLOWS_S = 15.0
KEY, BATCH = 7, 64
_STORE_BYTES = 80 << 20


class RayCluster:
    """Nodes of Ray: processes on this machine, of which the first is the head. Each has two cores, as Ray counts, and
    the resource `disk-0`, `disk-1`, …"""

    def __init__(self, nodes: int):
        # Ray tells its makers how it is used otherwise.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._cluster = Cluster()
        self._made: dict[int, Any] = {}
        for _ in range(nodes):
            self.add()
        self.address: str = self._cluster.address

    def add(self) -> None:
        """Add a node, with the resource of one that was removed."""
        number = next(number for number in range(len(self._made) + 1) if number not in self._made)
        self._made[number] = self._cluster.add_node(
            num_cpus=2,
            object_store_memory=_STORE_BYTES,
            include_dashboard=False,
            resources={f"disk-{number}": 1.0},
        )

    def remove(self, node: str) -> None:
        """End a node without a word, and all of its processes."""
        number = next(number for number, made in self._made.items() if made.node_id == node)
        self._cluster.remove_node(self._made.pop(number), allow_graceful=False)

    def is_head(self, node: str) -> bool:
        return self._made[0].node_id == node

    def command(self, *arguments: str | Path, fails: bool = False) -> str:
        """What `mixserve ray ARGUMENTS` says, as a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "mixserve", "ray", *map(str, arguments)],
            env=os.environ | {"RAY_ADDRESS": self.address, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE_S,
        )
        assert done.returncode == (2 if fails else 0), done.stderr
        return done.stderr if fails else done.stdout

    def close(self) -> None:
        self._cluster.shutdown()


def actors() -> list[str]:
    """The names of all actors of fleets that Ray knows."""
    return [one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE]


@contextmanager
def fleet_of(config: Path, **options: Any) -> Iterator[Fleet]:
    made = up(config, **{"insecure": True, "timeout_s": DEADLINE_S} | options)
    try:
        yield made
    finally:
        made.down(grace_s=0)


def node_of(config: Path) -> MixDataSourcesNode:
    """What a fleet of this configuration serves, in this process."""
    return build_nodes(load_config(config), config)["train"]


def addresses_of(client: MixClient) -> set[str]:
    """The replicas that a client knows."""
    return {replica.address for replica in client.catalog.resources.here.caller._replicas.all}


class Trainer:
    """Reads batches without a pause, in a thread, and compares each with that of a node in this process."""

    def __init__(self, client: MixClient, config: Path):
        self._client, self._node = client, node_of(config)
        self._over = threading.Event()
        self._failed: BaseException | None = None
        self.batches, self.longest_s = 0, 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Trainer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        if exception[0] is None and self._failed is not None:
            raise self._failed

    def read_more(self, count: int = 100) -> None:
        """Wait until it has read so many more."""
        since = self.batches
        self.wait_until(lambda: self.batches >= since + count, f"{count} batches more")

    def wait_until(self, is_so: Callable[[], object], what: str, seconds: float = DEADLINE_S) -> float:
        """Wait while it reads; returns how many seconds that took."""
        began = time.monotonic()
        while not is_so():
            if self._failed is not None:
                raise self._failed
            assert time.monotonic() - began < seconds, f"this did not come within {seconds:g} s: {what}"
            time.sleep(0.01)
        return time.monotonic() - began

    def _run(self) -> None:
        try:
            with self._client.batches(BATCH, KEY) as batches:
                while not self._over.is_set():
                    began = time.monotonic()
                    found = next(batches)["tokens"]
                    self.longest_s = max(self.longest_s, time.monotonic() - began)
                    start = self.batches * BATCH
                    right = self._node.get_batch_at(start, BATCH, jax.random.key(KEY))["tokens"]
                    assert np.array_equal(found, right), f"the batch at {start} differs"
                    self.batches += 1
        except BaseException as error:
            self._failed = error


def make_mixture(folder: Path) -> Path:
    """The configuration of a mixture of two small files of tokens, which lie beside it."""
    config = write_mixture(folder)
    config.write_text(config.read_text().replace("server: {port: 0}\n", ""))
    return config
