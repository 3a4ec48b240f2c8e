"""deploy/kubernetes -> objects, by kubectl's kustomize; with secrets made by the commands of docs/deploy.md."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.examples.page import Reader, blocks

ROOT = Path(__file__).parents[2]
# All that `kubectl apply -k` can be told.
FOLDERS = (
    "base", "overlays/autoscaled", "overlays/gpu", "overlays/sidecar", "overlays/stateful", "overlays/tpu",
    "overlays/trainer",
)  # fmt: skip
# What a server may take besides --grace-s: for its last replies, and for programs that still compile.
AFTER_GRACE_S = 2 + 20

Object = dict[str, Any]


def tool(name: str) -> str:
    """A command of the environment that `make test-kubernetes` sets up, else the machine's own; skips without."""
    pinned = ROOT / ".venv-kubernetes" / "bin" / name
    found = str(pinned) if pinned.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here, so that this was NOT checked")
    return found


def copy_with_secrets(folder: Path) -> Path:
    """Do in a copy of the checkout's `deploy/kubernetes` what docs/deploy.md says; returns its `deploy/kubernetes`."""
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl makes certificates, and is not here")
    # Not all of `deploy`: its folder of secrets for Compose may be another user's.
    shutil.copytree(ROOT / "deploy" / "kubernetes", folder / "deploy" / "kubernetes")
    (commands,) = [
        text for language, text in blocks("deploy.md") if language == "sh" and "cd deploy/kubernetes" in text
    ]
    Reader(folder).run(commands)
    return folder / "deploy" / "kubernetes"


def render(kubernetes: Path, name: str) -> str:
    """What `kubectl apply -k` of a folder would send."""
    command = [tool("kubectl"), "kustomize", str(kubernetes / name)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def objects(rendered: str) -> list[Object]:
    return list(yaml.safe_load_all(rendered))


def of_kind(found: list[Object], *kinds: str) -> list[Object]:
    return [one for one in found if one["kind"] in kinds]


def workload(found: list[Object]) -> Object:
    """The one object that makes pods."""
    (one,) = of_kind(found, "Deployment", "StatefulSet", "Job")
    return one


def containers(pod: Object) -> Iterator[Object]:
    """The containers of a pod, those that start before others first."""
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def server_of(pod: Object) -> Object:
    (server,) = [container for container in containers(pod) if container["name"] == "mixserve"]
    return server


def option(container: Object, name: str) -> str:
    """The value after `--name` in a container's arguments."""
    return container["args"][container["args"].index(name) + 1]
