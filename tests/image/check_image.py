"""The image of `deploy/Dockerfile`: built, run, stopped and looked into by Docker or Podman.

`make test-image` runs this file; the name keeps it out of `make test`. Without an engine its tests are reported as
skipped. The image `mixserve-test` stays, so that the next run builds only what has changed.
"""

import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

import mixserve
from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient
from tests.ports import free_ports
from tests.processes import DEADLINE_S, write_mixture

ROOT = Path(__file__).parents[2]
IMAGE = "mixserve-test"
HEALTH = ("mixserve", "health", "127.0.0.1:50052")
# The default command, for a mixture without TLS.
SERVE = (
    "serve", "/data/mixture.yaml", "--host", "0.0.0.0", "--port", "50051", "--health-port", "50052",
    "--bulk-port", "50053", "--insecure",
)  # fmt: skip
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--init")
READ_SHARED = """
from mixserve_client import MixClient
with MixClient.connect("127.0.0.1:50051", patience_s=20, shared_memory="/shared") as client:
    print(next(iter(client.batches(8, key=7)))["tokens"].sum(), client.transport)
"""


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
        return subprocess.run([self.command, *map(str, arguments)], capture_output=True, text=True, check=False)


class Container:
    def __init__(self, engine: Engine, name: str):
        self.engine, self.name = engine, name

    def log(self) -> str:
        return self.engine.run("logs", self.name).stderr

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while self.engine.run("exec", self.name, *HEALTH).returncode != 0:
            assert time.monotonic() < deadline, self.log()
            assert self.state()["Running"], self.log()

    def address(self) -> str:
        """Where its port 50051 is published."""
        return self.engine("port", self.name, "50051/tcp").splitlines()[-1]

    def state(self) -> dict[str, bool | int]:
        return json.loads(self.engine("inspect", self.name))[0]["State"]

    def stop(self) -> int:
        """Stop it by SIGTERM; returns its exit code."""
        self.engine("stop", self.name)
        return int(self.state()["ExitCode"])


@pytest.fixture(scope="session")
def engine() -> Engine:
    for command in ("docker", "podman"):
        if shutil.which(command) and Engine(command).run("info").returncode == 0:
            return Engine(command)
    pytest.skip("neither `docker info` nor `podman info` works here, so that the image was NOT built")


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    # Podman's own format has no health check.
    flags = ("--format", "docker") if engine.command == "podman" else ()
    engine("build", *flags, "--file", ROOT / "deploy" / "Dockerfile", "--tag", IMAGE, ROOT)
    return IMAGE


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a mixture that the image's user may read."""
    folder = tmp_path_factory.mktemp("data")
    folder.chmod(0o755)
    return write_mixture(folder).parent


@contextmanager
def volume(engine: Engine, *flags: str) -> Iterator[str]:
    name = f"{IMAGE}-{uuid.uuid4().hex[:12]}"
    engine("volume", "create", *flags, name)
    try:
        yield name
    finally:
        engine("volume", "rm", name)


@pytest.fixture(scope="session")
def cache(engine: Engine, image: str) -> Iterator[str]:
    """A volume for compiled programs."""
    with volume(engine) as name:
        yield name


@pytest.fixture
def start(engine: Engine, image: str, data: Path, cache: str):
    """Starts the image: `start(FLAGS, ARGUMENTS)`."""
    started: list[Container] = []

    def start(flags: tuple[str, ...] = (), arguments: tuple[str, ...] = SERVE) -> Container:
        container = Container(engine, f"{IMAGE}-{uuid.uuid4().hex[:12]}")
        volumes = ("--volume", f"{data}:/data:ro", "--volume", f"{cache}:/cache")
        started.append(container)
        engine("run", "--detach", "--name", container.name, *HARDENED, *volumes, *flags, image, *arguments)
        return container

    yield start
    for container in started:
        engine.run("rm", "--force", container.name)


def test_user_ports_and_health_check(engine, image):
    (settings,) = json.loads(engine("image", "inspect", image))
    assert settings["Config"]["User"] == "10001:10001"
    assert set(settings["Config"]["ExposedPorts"]) == {"50051/tcp", "50053/tcp"}
    assert settings["Config"]["Cmd"] == list(SERVE[:-1])
    # Docker has it in the configuration, Podman beside it.
    health_check = settings["Config"].get("Healthcheck") or settings["Healthcheck"]
    assert health_check["Test"] == ["CMD", *HEALTH]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    service = compose["services"]["mixserve"]
    assert service["healthcheck"]["test"] == health_check["Test"]
    assert service["command"] == list(SERVE)
    assert service["ports"] == ["127.0.0.1:50051:50051", "127.0.0.1:50053:50053"]


def test_volumes_take_their_owner_from_the_image(engine, image):
    # Podman gives a new volume to the container's user, Docker to the owner of the image's folder.
    found = engine("run", "--rm", "--entrypoint", "stat", image, "--format", "%n %u:%g %a", "/cache", "/state")
    assert found.splitlines() == ["/cache 10001:10001 755", "/state 10001:10001 755"]


def test_the_licenses_are_in_the_image(engine, image):
    installed = "/opt/mixserve/lib/python3.11/site-packages"
    licenses = [
        f"{installed}/{package}-{mixserve.__version__}.dist-info/licenses/LICENSE"
        for package in ("mixserve", "mixserve_client")
    ]
    engine("run", "--rm", "--entrypoint", "ls", image, *licenses)


def test_serves_read_only_and_stops_at_sigterm(engine, data, start):
    for _ in ("compiles", "finds compiled programs"):
        port = str(free_ports())  # of bulk channels: the server tells it to clients
        published = ("--publish", "127.0.0.1::50051", "--publish", f"127.0.0.1:{port}:{port}")
        container = start(published, (*SERVE, "--bulk-port", port))
        container.wait_until_healthy()
        with MixClient.connect(container.address(), patience_s=20) as client:
            served = next(client.batches(8, key=7))
            assert client.transport == f"bulk 127.0.0.1:{port}, grpc {container.address()}"
        assert container.stop() == 0
        assert "INFO stopped" in container.log()
        assert "cannot cache" not in container.log()
    config = data / "mixture.yaml"
    with local_client(build_nodes(load_config(config), config)) as client:
        np.testing.assert_array_equal(served["tokens"], client.get_batch_at(0, 8, key=7)["tokens"], strict=True)


def test_without_credentials_the_default_command_says_what_to_add(engine, image, data):
    engine("run", "--rm", "--volume", f"{data}:/data:ro", image, exit_code=2)


def test_an_early_stop_ends_it(engine, start):
    began = time.monotonic()
    assert start(("--stop-timeout", "60")).stop() in (0, 143)
    assert time.monotonic() - began < 30  # not killed


def test_other_commands(engine, image, data):
    assert "mixture train" in engine("run", "--rm", "--volume", f"{data}:/data:ro", image, "check", "mixture.yaml")
    engine("run", "--rm", image, exit_code=2)  # no data


def test_shared_memory_between_containers(engine, image, data, start):
    with volume(engine, "--opt", "type=tmpfs", "--opt", "device=tmpfs") as shared:
        mounted = ("--volume", f"{shared}:/shared")
        server = start(mounted, (*SERVE, "--shared-memory", "/shared"))
        server.wait_until_healthy()
        beside = ("run", "--rm", *HARDENED, *mounted, "--network", f"container:{server.name}", "--entrypoint", "python")
        assert "shared memory" in engine(*beside, image, "-c", READ_SHARED)
        other_user = engine(*beside, "--user", "10002:10002", image, "-c", READ_SHARED)
        assert "grpc" in other_user
        assert "shared memory" not in other_user
        engine("rm", "--force", server.name)


def test_sessions_survive_their_container(engine, start):
    with volume(engine) as kept:
        flags = ("--publish", "127.0.0.1::50051", "--volume", f"{kept}:/state")
        arguments = (*SERVE, "--state-dir", "/state")
        for index in (0, 8):
            server = start(flags, arguments)
            server.wait_until_healthy()
            with (
                MixClient.connect(server.address(), patience_s=20) as client,
                client.session("run-1") as session,
            ):
                assert session.index == index
                session.next_batch(8)
            assert server.stop() == 0
            engine("rm", server.name)
