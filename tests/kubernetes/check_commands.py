"""The commands and probes of deploy/kubernetes, taken out of the rendered YAML and run on this machine.

`make test-kubernetes` sets up what it needs and runs this file; the name keeps it out of `make test`.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, TokenSource, local_client
from mixserve_client import MixClient
from tests.examples.page import Reader
from tests.kubernetes.pods import Pod, Process, running
from tests.kubernetes.rendering import AFTER_GRACE_S, copy_with_secrets, objects, option, render, server_of
from tests.processes import freeze

SEQUENCE = 2048
STEPS = 1000  # of the trainer's Job


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory) -> Path:
    return copy_with_secrets(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def claims(tmp_path_factory) -> Mapping[str, Path]:
    """The claim mixserve-data, with files where base/mixture.yaml has them."""
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, rows in (("web", 700), ("code", 300)):
        (data / name).mkdir()
        rng.integers(0, 1 << 16, rows * SEQUENCE).astype(np.uint16).tofile(data / name / "part-0.bin")
    return {"mixserve-data": data}


@pytest.fixture(scope="module")
def expected(claims) -> str:
    """The digest that the trainer's Job ends with."""
    data = claims["mixserve-data"]
    files = [data / name / "part-0.bin" for name in ("web", "code")]
    sources = [TokenSource(file, dtype="uint16", sequence_length=SEQUENCE) for file in files]
    config = MixDataSourcesConfig(
        num_sources=2, weights=(0.7, 0.3), source_names=("web", "code"), sampling="epoch", plan_sizes=(4096,)
    )
    digest = ""
    with local_client({"train": MixDataSourcesNode(config, sources)}) as client:
        batches = client.batches(batch_size=64, key=7)
        for _ in range(STEPS):
            digest = hashlib.sha256(digest.encode() + next(batches)["tokens"].tobytes()).hexdigest()
    return digest


def check_trainer(trainer: Process, pod: Pod, expected: str, way: str) -> None:
    assert trainer.wait() == 0, trainer.log()
    lines = trainer.log().splitlines()
    assert lines[-1].startswith(f"step {STEPS}: {expected[:16]}"), trainer.log()
    assert way in lines[-1], lines[-1]
    assert json.loads(pod.path("/checkpoints/data.json").read_text())["digest"] == expected


def check_serving(server: Process) -> None:
    assert [server.probe(kind) for kind in ("startupProbe", "livenessProbe")] == ["SERVING"] * 2
    assert {json.loads(line)["level"] for line in server.log().splitlines()} == {"info"}, server.log()


def check_end(server: Process, pod: Pod) -> None:
    """SIGTERM ends it with 0 in the pod's time."""
    began = time.monotonic()
    server.terminate()
    assert server.wait(pod.grace_s) == 0, server.log()
    print(f"  SIGTERM: exit code 0 after {time.monotonic() - began:.1f} s")
    assert json.loads(server.log().splitlines()[-1])["message"] == "stopped"


def check_times(pod: Pod) -> None:
    assert float(option(server_of(pod.spec), "--grace-s")) + AFTER_GRACE_S < pod.grace_s


@pytest.mark.parametrize("folder", ["base", "overlays/gpu", "overlays/tpu"])
def test_servers_and_a_trainer(kubernetes, claims, expected, folder, tmp_path):
    pod = Pod(objects(render(kubernetes, folder)), tmp_path / "server", claims)
    check_times(pod)
    with running(pod, "mixserve") as server:
        assert server.probe("startupProbe") != "SERVING"  # or it would say nothing
        server.wait_until_started()
        assert server.probe("readinessProbe") == "SERVING"
        check_serving(server)
        trainer_pod = Pod(objects(render(kubernetes, "overlays/trainer")), tmp_path / "trainer", {}, pod.ports)
        with running(trainer_pod, "trainer") as trainer:
            check_trainer(trainer, trainer_pod, expected, f"bulk localhost:{pod.ports[50053]}")
        # It goes on where it was, and has nothing left to do.
        with running(trainer_pod, "trainer") as trainer:
            assert trainer.wait() == 0, trainer.log()
            assert "step" not in trainer.log()
        with MixClient.connect(
            f"localhost:{pod.ports[50051]}",
            tls=str(trainer_pod.path("/secrets/ca.pem")),
            token_file=str(trainer_pod.path("/secrets/token")),
        ) as client:
            batches = client.batches(64, key=1)
            next(batches)
            check_end(server, pod)  # while it reads ahead
        assert server.probe("readinessProbe") == "UNAVAILABLE"


def test_a_trainer_whose_server_is_replaced(kubernetes, claims, expected, tmp_path):
    """As when a node is drained, with one replica: the trainer waits for the next one."""
    pod = Pod(objects(render(kubernetes, "base")), tmp_path / "server", claims)
    trainer_pod = Pod(objects(render(kubernetes, "overlays/trainer")), tmp_path / "trainer", {}, pod.ports)
    with running(pod, "mixserve") as first:
        first.wait_until_started()
        with running(trainer_pod, "trainer") as trainer:
            trainer.wait_for_log("step 100:")
            freeze(trainer.pid)  # it would be through before the server is told
            assert f"step {STEPS}:" not in trainer.log()
            check_end(first, pod)
            os.kill(trainer.pid, signal.SIGCONT)
            with running(pod, "mixserve") as second:
                check_trainer(trainer, trainer_pod, expected, "localhost")
                check_end(second, pod)


def test_a_server_beside_its_trainer(kubernetes, claims, expected, tmp_path):
    pod = Pod(objects(render(kubernetes, "overlays/sidecar")), tmp_path, claims)
    check_times(pod)
    with running(pod, "mixserve") as server:
        server.wait_until_started()  # before it, the kubelet does not start the trainer
        check_serving(server)
        with running(pod, "trainer") as trainer:
            check_trainer(trainer, pod, expected, "shared memory")
        check_end(server, pod)  # the kubelet stops it when the trainer has ended


def test_sessions_outlive_their_pod(kubernetes, claims, tmp_path):
    new = "mixserve token new trainer --name sessions --mixture train --file base/secrets/tokens.yaml"
    token, ca = Reader(kubernetes).run(new).strip(), kubernetes / "overlays/trainer/secrets/ca.pem"
    pod = Pod(objects(render(kubernetes, "overlays/stateful")), tmp_path, claims)
    check_times(pod)
    for index in (0, 8):
        with running(pod, "mixserve") as server:
            server.wait_until_started()
            check_serving(server)
            with (
                MixClient.connect(f"localhost:{pod.ports[50051]}", tls=str(ca), token=token) as client,
                client.session("run") as session,
            ):
                assert session.index == index
                session.next_batch(8)
            check_end(server, pod)
