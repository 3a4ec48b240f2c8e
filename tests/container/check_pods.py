"""The commands and probes of deploy/kubernetes, taken out of the rendered YAML and run in the images."""

import os

import pytest

from mixserve_client import MixClient
from tests.container.pods import ContainerPod
from tests.examples.page import Reader
from tests.kubernetes.check_commands import (
    check_end,
    check_serving,
    check_trainer,
    claims,  # noqa: F401
    expected,  # noqa: F401
    kubernetes,  # noqa: F401
)
from tests.kubernetes.pods import running
from tests.kubernetes.rendering import objects, render

pytestmark = pytest.mark.skipif(
    os.getuid() != 0, reason="files of volumes are given to the pod's group, as root alone can"
)


@pytest.fixture
def pod(engine, images, net, kubernetes, claims, tmp_path):  # noqa: F811
    """`pod(FOLDER)`: the pod that a folder of deploy/kubernetes renders."""
    claims["mixserve-data"].chmod(0o755)
    return lambda name: ContainerPod(engine, net, objects(render(kubernetes, name)), tmp_path / name, claims)


def test_servers_and_a_trainer(pod, expected):  # noqa: F811
    servers = pod("base")
    with running(servers, "mixserve") as server:
        server.wait_until_started()
        assert server.probe("readinessProbe") == "SERVING"
        check_serving(server)
        trainers = pod("overlays/trainer")
        with running(trainers, "trainer") as trainer:
            check_trainer(trainer, trainers, expected, "bulk mixserve.mixserve.svc.cluster.local:50053")
        with MixClient.connect(
            f"localhost:{servers.ports[50051]}",
            tls=str(trainers.path("/secrets/ca.pem")),
            token_file=str(trainers.path("/secrets/token")),
            bulk=False,
        ) as client:
            batches = client.batches(64, key=1)
            next(batches)
            check_end(server, servers)  # while it reads ahead


def test_a_server_beside_its_trainer(pod, expected):  # noqa: F811
    both = pod("overlays/sidecar")
    with running(both, "mixserve") as server:
        server.wait_until_started()
        check_serving(server)
        with running(both, "trainer") as trainer:
            check_trainer(trainer, both, expected, "shared memory")
        check_end(server, both)


def test_sessions_outlive_their_pod(pod, kubernetes):  # noqa: F811
    new = "mixserve token new trainer --name sessions --mixture train --file base/secrets/tokens.yaml"
    token, ca = Reader(kubernetes).run(new).strip(), kubernetes / "overlays/trainer/secrets/ca.pem"
    servers = pod("overlays/stateful")
    for index in (0, 8):
        with running(servers, "mixserve") as server:
            server.wait_until_started()
            address = f"localhost:{servers.ports[50051]}"
            with (
                MixClient.connect(address, tls=str(ca), token=token, bulk=False) as client,
                client.session("run") as session,
            ):
                assert session.index == index
                session.next_batch(8)
            check_end(server, servers)
