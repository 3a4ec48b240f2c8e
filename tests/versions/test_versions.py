"""The client of before with today's server, and the other way: the same batches, states, sessions and errors.

docs/releasing.md promises it; `trees.OLD` says which version "before" is.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixserve_client import MixClient, ServerFault
from tests.processes import DEADLINE_S
from tests.versions.read_all import ROUTES
from tests.versions.trees import ROOT, environment, serving, unpack

MIXTURES = """
mixtures:
  tokens:
    sampling: epoch
    sources:
      a: {kind: tokens, path: a.bin, dtype: uint16, sequence_length: 16, weight: 0.7}
      b: {kind: tokens, path: b.bin, dtype: uint16, sequence_length: 16, weight: 0.3}
  arrays:
    sources:
      c: {kind: arrays, path: c.npz, weight: 1}
      d: {kind: arrays, path: d.npz, weight: 2}
server: {port: 0}
"""
Got = dict[str, Any]


@pytest.fixture(scope="module")
def trees() -> dict[str, Path]:
    return {"new": ROOT, "old": unpack()}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        rng.integers(0, 1 << 16, 160_000).astype(np.uint16).tofile(folder / f"{name}.bin")
    for name, length in (("c", 40), ("d", 70)):
        np.savez(
            folder / f"{name}.npz",
            image=rng.normal(size=(length, 3, 2)).astype(np.float32),
            id=rng.integers(-(1 << 62), 1 << 62, length),
            flag=rng.integers(0, 2, length).astype(bool),
        )
    (folder / "mixture.yaml").write_text(MIXTURES)
    return folder / "mixture.yaml"


@pytest.fixture(scope="module")
def servers(trees: dict[str, Path], config: Path) -> Iterator[dict[str, str]]:
    """The addresses of both servers, which serve the same files."""
    with serving(config, {trees[name]: config.parent / name for name in trees}) as addresses:
        yield dict(zip(trees, addresses, strict=True))


def read(tree: Path, address: str, route: str, **asked: Any) -> Got:
    """What the client of that tree gets."""
    command = [
        sys.executable,
        "-P",
        Path(__file__).with_name("read_all.py"),
        address,
        json.dumps({"route": route} | asked),
    ]
    ended = subprocess.run(command, env=environment(tree), capture_output=True, text=True, timeout=DEADLINE_S, cwd="/")
    assert ended.returncode == 0, ended.stderr
    got = json.loads(ended.stdout)
    assert Path(got["package"]).is_relative_to(tree / "client"), "the wrong version was read"
    return got


@pytest.fixture(scope="module")
def expected(trees: dict[str, Path], servers: dict[str, str]) -> dict[str, Got]:
    """What each client gets from the server of its own version, over gRPC; it leaves the session `of-VERSION` there."""
    return {name: read(trees[name], servers[name], "grpc", begin=f"of-{name}") for name in ("old", "new")}


OTHER = {"old": "new", "new": "old"}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("client", ["old", "new"])
def test_a_client_of_one_version_reads_from_a_server_of_the_other(trees, servers, expected, client, route):
    """Iterators resume from the states that the client of the other version saved."""
    other = OTHER[client]
    got = read(trees[client], servers[other], route, states=expected[other]["states"])
    assert got["transport"].startswith(route.partition(" with ")[0]), got["transport"]
    assert got["mixtures"] == expected[client]["mixtures"] == expected[other]["mixtures"]
    assert got["errors"] == expected[client]["errors"] == expected[other]["errors"]
    assert set(got["errors"]) == {"mixture", "rows", "session", "state"}


@pytest.mark.parametrize("client", ["old", "new"])
def test_sessions_go_on_with_a_client_of_the_other_version(trees, servers, expected, client):
    other = OTHER[client]
    got = read(trees[client], servers[other], "grpc", begin=f"by-{client}", resume=f"of-{other}")
    assert got["session"] == expected[client]["session"]
    assert got["resumed"]["resumed"]
    assert got["resumed"]["at"] == expected[other]["session"]["at"][:2]
    assert got["resumed"]["again"] == expected[other]["session"]["after"]


@pytest.mark.parametrize("client", ["old", "new"])
def test_servers_of_two_versions_are_replicas(trees, servers, expected, client):
    """As during a rolling upgrade: whichever answers, the batches are the same."""
    got = read(trees[client], f"{servers['old']},{servers['new']}", "grpc")
    assert got["mixtures"] == expected[client]["mixtures"]


def test_servers_go_on_with_the_state_folders_of_the_other_version(trees, config, expected, tmp_path):
    """Upgrades, and the way back, from what a server leaves that is killed: its folder is copied while it runs."""
    for name in trees:
        shutil.copytree(config.parent / name, tmp_path / name)
    with serving(config, {trees[OTHER[name]]: tmp_path / name for name in trees}) as addresses:
        for name, address in zip(trees, addresses, strict=True):
            got = read(trees[OTHER[name]], address, "grpc", resume=f"of-{name}")
            assert got["resumed"]["resumed"]
            assert got["resumed"]["at"] == expected[name]["session"]["at"][:2]
            assert got["resumed"]["again"] == expected[name]["session"]["after"]


def test_what_a_server_of_before_lacks_is_an_error_that_says_so(servers):
    with MixClient.connect(servers["old"], patience_s=20) as client:
        with pytest.raises(ServerFault, match="is the server older than this client"):
            client.server_stats()
        assert client.mixtures() == ("arrays", "tokens")
