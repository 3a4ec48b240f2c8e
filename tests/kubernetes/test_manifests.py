"""deploy/kubernetes without a tool for it: mixtures that a server takes, ports and names that agree with the code."""

import re
from pathlib import Path

import pytest
import yaml

import mixserve
from mixserve.config import load_config
from tests.examples.page import DOCS
from tests.kubernetes.rendering import AFTER_GRACE_S, FOLDERS, ROOT, Object, option

KUBERNETES = ROOT / "deploy" / "kubernetes"
LIVENESS = {"grpc": {"port": 50052, "service": "mixserve.v1.MixService"}}


def read(name: str) -> Object:
    return yaml.safe_load((KUBERNETES / name).read_text("utf-8"))


def pod_of(name: str) -> Object:
    return read(name)["spec"]["template"]["spec"]


SERVERS = {
    "base": pod_of("base/deployment.yaml")["containers"][0],
    "overlays/sidecar": pod_of("overlays/sidecar/server.yaml")["initContainers"][0],
}


@pytest.mark.parametrize("folder", SERVERS)
def test_ports_and_folders_are_those_of_the_mixture(folder):
    server, container = load_config(KUBERNETES / folder / "mixture.yaml").server, SERVERS[folder]
    ports = {server.health_port, server.metrics_port}
    if server.host == "0.0.0.0":
        ports |= {server.port, server.bulk_port}
        service = read("base/service.yaml")
        assert {port["port"] for port in service["spec"]["ports"]} == {server.port, server.bulk_port}
    assert {port["containerPort"] for port in container["ports"]} == ports
    assert server.health_host == server.metrics_host == "0.0.0.0"
    text = (KUBERNETES / folder / "mixture.yaml").read_text()
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    used = {f"/{name}" for name in re.findall(r"[ \"]/(\w+)[/\n]", text)}
    assert used <= mounts


@pytest.mark.parametrize("folder", SERVERS)
def test_probes_and_the_end_of_a_pod(folder):
    """A source that hangs restarts nothing, as docs/operating.md says; and calls have the time that they were given."""
    container = SERVERS[folder]
    for kind in ("startupProbe", "livenessProbe"):
        assert container[kind].items() >= LIVENESS.items()
    if "readinessProbe" in container:
        assert container["readinessProbe"]["grpc"] == {"port": 50052}
    pod = pod_of("base/deployment.yaml" if folder == "base" else f"{folder}/server.yaml")
    assert float(option(container, "--grace-s")) + AFTER_GRACE_S < pod["terminationGracePeriodSeconds"]


def test_metrics_are_those_of_the_docs():
    told = set(re.findall(r"`(mixserve_\w+)`", (DOCS / "operations.md").read_text("utf-8")))
    asked = {
        name
        for file in (KUBERNETES / "components" / "autoscaling").iterdir()
        for name in re.findall(r"\bmixserve_\w+", file.read_text("utf-8"))
    }
    assert len(asked) >= 3
    assert asked <= told


def test_images_have_the_version():
    for file in KUBERNETES.rglob("kustomization.yaml"):
        for image in yaml.safe_load(file.read_text()).get("images", ()):
            assert image["newTag"].partition("-")[0] == mixserve.__version__, file


def test_the_page_names_every_folder():
    page = (DOCS / "deploy.md").read_text("utf-8")
    for folder in FOLDERS:
        assert f"`{folder}`" in page, folder
    for link in re.findall(r"\]\((\.\./[^)#]+)", page):
        assert (DOCS / Path(link)).exists(), link
