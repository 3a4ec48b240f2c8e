"""The server's image as it is deployed: start, health, bulk channels, TLS and tokens, shared memory, sessions, stop."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient, Unauthenticated
from tests.certificates import NEEDS_OPENSSL, Authority
from tests.container.conftest import SERVE, SERVER
from tests.container.engine import IN_MEMORY, LIMITED, Container, Engine
from tests.ports import free_ports
from tests.processes import DEADLINE_S


def test_serves_read_only_and_stops_at_sigterm(engine, data, images, new_volume, containers):
    cache = new_volume()
    for programs in ("compiled", "found in the cache"):
        port = str(free_ports())  # of bulk channels: the server tells it to clients
        published = ("--publish", "127.0.0.1::50051", "--publish", f"127.0.0.1:{port}:{port}")
        volumes = ("--volume", f"{data}:/data:ro", "--volume", f"{cache}:/cache")
        container = Container(engine, SERVER, (*LIMITED, *volumes, *published), (*SERVE, "--bulk-port", port))
        containers.append(container)
        print(f"\n{container.wait_until_serving():.1f} s until it serves, programs {programs}", end="")
        container.wait_until_healthy()
        print(f"; memory at rest: {container.memory()}")
        with MixClient.connect(container.address(), patience_s=20) as client:
            served = next(client.batches(8, key=7))
            assert client.transport == f"bulk 127.0.0.1:{port}, grpc {container.address()}"
        assert container.stop() == 0
        assert "INFO stopped" in container.log()
        assert "cannot cache" not in container.log()
    config = data / "mixture.yaml"
    with local_client(build_nodes(load_config(config), config)) as client:
        np.testing.assert_array_equal(served["tokens"], client.get_batch_at(0, 8, key=7)["tokens"], strict=True)


def test_a_server_that_does_not_serve_is_not_healthy(engine, start):
    container = start(("--entrypoint", "sleep"), ("60",))
    assert not container.is_healthy()
    assert container.state()["Running"]


def test_without_credentials_the_default_command_says_what_to_add(engine, images, data):
    ended = engine.run("run", "--rm", "--volume", f"{data}:/data:ro", SERVER)
    assert ended.returncode == 2
    assert "tls" in ended.stderr


def test_an_early_stop_ends_it(engine, start):
    began = time.monotonic()
    assert start().stop() in (0, 143)
    assert time.monotonic() - began < 30  # not killed


def test_other_commands(engine, images, data):
    assert "mixture train" in engine("run", "--rm", "--volume", f"{data}:/data:ro", SERVER, "check", "mixture.yaml")
    engine("run", "--rm", SERVER, exit_code=2)  # no data


@pytest.fixture
def secrets(engine: Engine, images: None, tmp_path: Path) -> Path:
    """Certificates for the names of two servers, and a token file that the image itself has made."""
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("servers", "DNS:replica-1, DNS:replica-2, IP:127.0.0.1")
    folder = tmp_path / "secrets"
    folder.mkdir()
    pair.copy_to(folder)
    (folder / "ca.pem").write_bytes(authority.ca.read_bytes())
    user = f"{os.getuid()}:{os.getgid()}"
    new = ("token", "new", "reader", "--name", "trainers", "--mixture", "train", "--file", "/secrets/tokens.yaml")
    mounted = ("--volume", f"{folder}:/secrets")
    (folder / "token").write_text(engine("run", "--rm", *engine.hardened, "--user", user, *mounted, SERVER, *new))
    for file in folder.iterdir():
        # Without root the image's user is one of "others", and the server warns of that.
        file.chmod(0o600 if os.getuid() == 0 else 0o644)
        if os.getuid() == 0:
            os.chown(file, 10001, 10001)
    folder.chmod(0o755)
    return folder


@NEEDS_OPENSSL
def test_replicas_with_tls_and_tokens(engine, data, secrets, start, train, net, tmp_path):
    """On a network of their own, with the default command; then the same from outside, through published ports."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    config = folder / "mixture.yaml"
    tls = "server: {tls: {certificate: /secrets/tls.pem, key: /secrets/tls.key}, tokens: /secrets/tokens.yaml}"
    config.write_text(config.read_text().replace("server: {port: 0}", tls))
    replicas = []
    for name in ("replica-1", "replica-2"):
        port = str(free_ports())
        flags = (
            "--network", net, "--network-alias", name, "--publish", "127.0.0.1::50051",
            "--publish", f"127.0.0.1:{port}:{port}", "--volume", f"{secrets}:/secrets:ro",
        )  # fmt: skip
        replicas.append(start(flags, (*SERVE[:-1], "--bulk-port", port), folder))
    for replica in replicas:
        replica.wait_until_serving()
        replica.wait_until_healthy()
        assert os.getuid() or "WARNING" not in replica.log()
    mounted = ("--network", net, "--volume", f"{secrets}:/secrets:ro")
    trainer = train(
        mounted,
        address=["replica-1:50051", "replica-2:50051"],
        tls="/secrets/ca.pem",
        token_file="/secrets/token",
        batches=200,
    )
    assert trainer.container.wait_for_end() == 0, trainer.container.log()
    assert "bulk replica-" in trainer.check_end()["transport"]
    options = {"tls": str(secrets / "ca.pem"), "patience_s": 20}
    addresses = [replica.address() for replica in replicas]
    with MixClient.connect(addresses, token_file=secrets / "token", **options) as client:
        batches, deadline = client.batches(8, key=7), time.monotonic() + DEADLINE_S
        while "bulk 127.0.0.1" not in client.transport:
            next(batches)
            assert time.monotonic() < deadline, client.transport
    for token in (None, "wrong"):
        with MixClient.connect(addresses, token=token, **options) as client, pytest.raises(Unauthenticated):
            client.get_batch_at(0, 8, key=7)
    assert [replica.stop() for replica in replicas] == [0, 0]


@pytest.mark.parametrize("way", ["as in a pod", "with addresses of their own"])
def test_shared_memory_between_containers(new_volume, start, train, net, way):
    """Batches travel through memory, which a Unix socket on a volume passes on, and the rest over the network."""
    mounted = ("--volume", f"{new_volume(*IN_MEMORY)}:/shared")
    own = ("--network", net, "--network-alias", "replica-1")
    server = start((*mounted, *own), (*SERVE, "--shared-memory", "/shared"))
    server.wait_until_serving()
    beside = ("--network", f"container:{server.name}") if way == "as in a pod" else ("--network", net)
    address = "127.0.0.1:50051" if way == "as in a pod" else "replica-1:50051"
    options = {"address": address, "shared_memory": "/shared", "batches": 100}
    trainer = train((*mounted, *beside), **options)
    assert trainer.container.wait_for_end() == 0, trainer.container.log()
    assert trainer.check_end()["transport"].startswith("shared memory")
    assert server.execute("find", "/shared", "-type", "f") == ""  # the memory itself lies in no file system
    other_user = train((*mounted, *beside, "--user", "10002:10002"), **options)
    assert other_user.container.wait_for_end() == 0, other_user.container.log()
    transport = other_user.check_end()["transport"]
    assert "grpc" in transport
    assert "shared memory" not in transport


def test_sessions_survive_their_container(new_volume, start):
    flags = ("--publish", "127.0.0.1::50051", "--volume", f"{new_volume()}:/state")
    for index in (0, 8):
        server = start(flags, (*SERVE, "--state-dir", "/state"))
        server.wait_until_serving()
        with (
            MixClient.connect(server.address(), patience_s=20, bulk=False) as client,
            client.session("run-1") as session,
        ):
            assert session.index == index
            session.next_batch(8)
        assert server.stop() == 0
        server.remove()


def test_the_client_commands_of_the_image(engine, images, start, net):
    """`mixserve info` and `top` from a container beside the server, as the page says to look at one."""
    server = start(("--network", net, "--network-alias", "replica-1"))
    server.wait_until_serving()
    beside = ("run", "--rm", *engine.hardened, "--network", net, SERVER)
    assert "train" in engine(*beside, "info", "replica-1:50051")
    assert json.loads(engine(*beside, "top", "replica-1:50051", "--once", "--json"))
