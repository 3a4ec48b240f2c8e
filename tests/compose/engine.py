"""Docker or Podman with Compose: pages say `docker`, whichever of the two is here."""

import os
import random
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from tests.container.engine import no_engine

ROOT = Path(__file__).parents[2]
# `make test-compose` installs it there; Docker has Compose in it.
PODMAN_COMPOSE = ROOT / ".venv-compose" / "bin" / "podman-compose"
BASE = "python:3.11-slim-bookworm"
# So that no tag of the machine's own is replaced. The images stay, and the next run builds only what has changed.
IMAGES = {
    "MIXSERVE_IMAGE": "mixserve-compose-test",
    "TRAINER_IMAGE": "mixserve-compose-test-client",
    "PROMETHEUS_IMAGE": "mixserve-compose-test-prometheus",
}


class Engine:
    """Runs commands of a page in `folder`, with `docker` as the engine that is here.

    `extra` is one more file for Compose. Containers and volumes belong to a project of their own, and ports are
    published at `address`, one of the loopback addresses, drawn for each run.
    """

    def __init__(self, command: str, folder: Path, extra: Path):
        self.folder = folder
        self.project = f"mixserve-test-{uuid.uuid4().hex[:8]}"
        choice = random.SystemRandom()
        self.address = "127." + ".".join(str(choice.randrange(2, 250)) for _ in range(3))
        # Podman's own format of images has no health check. As for the network: in a bridge of their own, builds here
        # lost questions to the name server.
        flags = "--podman-build-args='--format=docker --network=host'"
        compose = f"{shutil.which(command)} compose" if command == "docker" else f"{_podman_compose()} {flags}"
        commands = folder.parent / "commands"
        commands.mkdir()
        docker = commands / "docker"
        docker.write_text(
            "#!/bin/sh\n"
            f'if [ "$1" != compose ]; then exec {shutil.which(command)} "$@"; fi\n'
            # compose --file FILE …
            f'file=$3; shift 3; exec {compose} --file "$file" --file "{extra}" "$@"\n'
        )
        docker.chmod(0o755)
        self.environ: Mapping[str, str] = os.environ | IMAGES | {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "COMPOSE_PROJECT_NAME": self.project,
            "MIXSERVE_PUBLISH": self.address,
            "METRICS_PUBLISH": self.address,
            "PROMETHEUS_BASE": BASE,
        }  # fmt: skip

    def run(self, commands: str, *, both: bool = False) -> str:
        """What commands of a shell print to stdout, or to stderr as well; they must end with 0."""
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{commands}\n{ended.stdout}{ended.stderr}"
        return ended.stdout + ended.stderr if both else ended.stdout

    def compose(self, arguments: str) -> str:
        return self.run(f"docker compose --file deploy/compose.yaml {arguments}")

    def container(self, service: str) -> str:
        """The id of a service's container, empty if there is none."""
        labels = ("com.docker.compose.project", self.project), ("com.docker.compose.service", service)
        filters = " ".join(f"--filter label={name}={value}" for name, value in labels)
        return self.run(f"docker ps --all --quiet {filters}").strip()

    def inspect(self, service: str, what: str) -> str:
        """A value of `docker inspect`, such as `.State.Pid`."""
        return self.run(f"docker inspect --format '{{{{{what}}}}}' {self.container(service)}").strip()

    def log(self, service: str) -> str:
        return self.run(f"docker logs {self.container(service)}", both=True)


def find_engine() -> str:
    """Docker or Podman. Skips if neither works, or fails if MIXSERVE_NEED_ENGINE=1."""
    if _works("docker", "info") and _works("docker", "compose", "version"):
        return "docker"
    if _works("podman", "info") and _podman_compose() is not None:
        return "podman"
    return no_engine(
        "neither `docker compose` nor `podman` with podman-compose works here, so that compose.yaml was NOT run"
    )


def _podman_compose() -> Path | None:
    found = shutil.which("podman-compose")
    return PODMAN_COMPOSE if PODMAN_COMPOSE.exists() else None if found is None else Path(found)


def _works(*command: str) -> bool:
    is_there = shutil.which(command[0]) is not None
    return is_there and subprocess.run(command, capture_output=True, check=False).returncode == 0
