"""Docker or Podman: its command line, containers as deploy/ runs them, volumes and networks."""

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NoReturn

import pytest

from tests.processes import DEADLINE_S

# Of everything that these tests make, so that they find nothing of others.
PREFIX = "mixserve-test"
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--init")
# Flags of a volume in memory, for a socket that containers share.
IN_MEMORY = ("--opt", "type=tmpfs", "--opt", "device=tmpfs")
LIMITED = ("--memory", "1g", "--memory-swap", "1g")


class Engine:
    """The command line of a container engine."""

    def __init__(self, command: str):
        self.command = command

    def __call__(self, *arguments: str | Path, exit_code: int = 0) -> str:
        """What `docker ARGUMENTS` prints to stdout; it must end with `exit_code`."""
        ended = self.run(*arguments)
        assert ended.returncode == exit_code, (arguments, ended.stdout, ended.stderr)
        return ended.stdout.strip()

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        # Podman's monitor leaves a file `oom` in the folder in which a container was started that was killed so.
        return subprocess.run(
            [self.command, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=gettempdir()
        )

    @property
    def hardened(self) -> tuple[str, ...]:
        """Flags of every container. Podman mounts a writable /tmp beside a read-only root; Docker does not."""
        return HARDENED + (("--read-only-tmpfs=false",) if self.command == "podman" else ())

    def build(self, dockerfile: Path, tag: str, *flags: str) -> None:
        # Podman's own format has no health check.
        docker = ("--format", "docker") if self.command == "podman" else ()
        self("build", *docker, *flags, "--file", dockerfile, "--tag", tag, dockerfile.parents[1])

    def image(self, name: str) -> dict[str, Any]:
        return json.loads(self("image", "inspect", name))[0]


def find_engine() -> Engine:
    """Docker or Podman. Skips if neither works, or fails if MIXSERVE_NEED_ENGINE=1 asks for these tests."""
    for command in ("docker", "podman"):
        if shutil.which(command) and Engine(command).run("info").returncode == 0:
            return Engine(command)
    return no_engine("neither `docker info` nor `podman info` works here, so that the images were NOT built")


def no_engine(reason: str) -> NoReturn:
    """Skips, or fails if MIXSERVE_NEED_ENGINE=1."""
    if os.environ.get("MIXSERVE_NEED_ENGINE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class Container:
    """One that runs in the background, or has."""

    def __init__(self, engine: Engine, image: str, flags: tuple[str, ...], arguments: tuple[str, ...]):
        self.engine, self.name = engine, new_name()
        self.began = time.monotonic()
        ended = engine.run("run", "--detach", "--name", self.name, *engine.hardened, *flags, image, *arguments)
        if ended.returncode:
            self.remove()
            raise AssertionError(ended.stderr)

    def log(self) -> str:
        ended = self.engine.run("logs", self.name)
        return ended.stdout + ended.stderr

    def printed(self) -> str:
        """What it has written to stdout."""
        return self.engine.run("logs", self.name).stdout

    def state(self) -> dict[str, Any]:
        return json.loads(self.engine("inspect", self.name))[0]["State"]

    def wait_for(self, condition: Callable[[str], Any], runs: bool = True) -> float:
        """Wait until `condition` holds for its log; returns how many seconds after its start that was.

        With `runs` it must not end before.
        """
        deadline = time.monotonic() + DEADLINE_S
        while not condition(self.log()):
            assert time.monotonic() < deadline, self.log()
            assert not runs or self.state()["Running"], self.log()
            time.sleep(0.05)
        return time.monotonic() - self.began

    def wait_until_serving(self, times: int = 1) -> float:
        """Until its log has said for the N-th time that it serves; returns how many seconds after its start."""
        return self.wait_for(lambda log: log.count("serving on") >= times, runs=times == 1)

    def wait_for_end(self) -> int:
        """Its exit code, when it has ended by itself."""
        deadline = time.monotonic() + DEADLINE_S
        while self.state()["Running"]:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        return int(self.state()["ExitCode"])

    def address(self, port: int = 50051) -> str:
        """Where one of its ports is published."""
        return self.engine("port", self.name, f"{port}/tcp").splitlines()[-1]

    def ip_address(self) -> str:
        """In its own network."""
        (joined,) = json.loads(self.engine("inspect", self.name))[0]["NetworkSettings"]["Networks"].values()
        return joined["IPAddress"]

    def execute(self, *command: str, exit_code: int = 0) -> str:
        """What a command inside prints."""
        return self.engine("exec", self.name, *command, exit_code=exit_code)

    def is_healthy(self) -> bool:
        """What the image's own health check says, run now if the engine can do that."""
        if self.engine.command == "podman":
            return self.engine.run("healthcheck", "run", self.name).returncode == 0
        return self.state()["Health"]["Status"] == "healthy"

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not self.is_healthy():
            assert time.monotonic() < deadline, self.log()
            assert self.state()["Running"], self.log()

    def memory(self) -> str:
        """What the engine shows as its memory, without the cache of files."""
        return self.engine("stats", "--no-stream", "--format", "{{.MemUsage}}", self.name).split("/")[0].strip()

    def stop(self) -> int:
        """Stop it by SIGTERM; returns its exit code."""
        self.engine("stop", "--time", "40", self.name)
        return int(self.state()["ExitCode"])

    def remove(self) -> None:
        self.engine.run("rm", "--force", "--time", "0", self.name)


def new_name() -> str:
    return f"{PREFIX}-{uuid.uuid4().hex[:12]}"


@contextmanager
def volume(engine: Engine, *flags: str) -> Iterator[str]:
    name = new_name()
    engine("volume", "create", *flags, name)
    try:
        yield name
    finally:
        engine("volume", "rm", name)


@contextmanager
def network(engine: Engine) -> Iterator[str]:
    """One in which containers find each other by name."""
    name = new_name()
    engine("network", "create", name)
    try:
        yield name
    finally:
        engine("network", "rm", name)
