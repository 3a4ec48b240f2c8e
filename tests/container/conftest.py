"""The two images, built once; a mixture; servers and trainers as containers."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from tests.container.engine import LIMITED, PREFIX, Container, Engine, find_engine, network, volume
from tests.processes import write_mixture

ROOT = Path(__file__).parents[2]
SERVER, CLIENT = PREFIX, f"{PREFIX}-client"
# The default command, for a mixture without TLS.
SERVE = (
    "serve", "/data/mixture.yaml", "--host", "0.0.0.0", "--port", "50051", "--health-port", "50052",
    "--bulk-port", "50053", "--insecure",
)  # fmt: skip


@pytest.fixture(scope="session")
def engine() -> Engine:
    return find_engine()


@pytest.fixture(scope="session")
def images(engine: Engine) -> None:
    """The images SERVER and CLIENT. They stay, so that the next run builds only what has changed."""
    engine.build(ROOT / "deploy" / "Dockerfile", SERVER)
    engine.build(ROOT / "deploy" / "client.Dockerfile", CLIENT)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a mixture that the image's user may read."""
    folder = tmp_path_factory.mktemp("data")
    folder.chmod(0o755)
    return write_mixture(folder).parent


@pytest.fixture(scope="session")
def cache(engine: Engine, images: None) -> Iterator[str]:
    """A volume for compiled programs."""
    with volume(engine) as name:
        yield name


@pytest.fixture
def later() -> Iterator[ExitStack]:
    """Ends what containers of the test use, after they are gone."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def containers(later: ExitStack) -> Iterator[list[Container]]:
    """Those that a test starts; they are removed at its end."""
    started: list[Container] = []
    yield started
    for container in reversed(started):
        container.remove()


@pytest.fixture
def net(engine: Engine, later: ExitStack) -> str:
    """A network of the test's own."""
    return later.enter_context(network(engine))


@pytest.fixture
def new_volume(engine: Engine, later: ExitStack) -> Callable[..., str]:
    """Makes a volume of the test's own, with flags of `volume create`."""
    return lambda *flags: later.enter_context(volume(engine, *flags))


@pytest.fixture
def start(engine: Engine, containers: list[Container], data: Path, cache: str) -> Callable[..., Container]:
    """Starts a server: `start(FLAGS, ARGUMENTS)`."""

    def start(flags: tuple[str, ...] = (), arguments: tuple[str, ...] = SERVE, folder: Path = data) -> Container:
        volumes = ("--volume", f"{folder}:/data:ro", "--volume", f"{cache}:/cache")
        containers.append(Container(engine, SERVER, (*LIMITED, *volumes, *flags), arguments))
        return containers[-1]

    return start


@dataclass(frozen=True)
class Trainer:
    """A container of the client's image that runs trainer.py."""

    container: Container
    config: Path

    def wait_for_step(self, step: int) -> None:
        self.container.wait_for(lambda log: any(int(found) >= step for found in re.findall(r"step (\d+)\n", log)))

    def wait_for_more(self, steps: int) -> None:
        """So many steps after those that it has made."""
        made = [int(found) for found in re.findall(r"step (\d+)\n", self.container.printed())]
        self.wait_for_step(max(made, default=0) + steps)

    def check_end(self) -> dict[str, Any]:
        """It ends with 0, and read the batches of its mixture; returns what it printed about them."""
        assert self.container.stop() == 0, self.container.log()
        ended = json.loads(self.container.printed().splitlines()[-1])
        assert ended["digest"] == digest_of(self.config, ended["steps"]), ended
        return ended


@pytest.fixture
def train(engine: Engine, images: None, containers: list[Container], data: Path) -> Callable[..., Trainer]:
    """Starts a trainer: `train(FLAGS, address=…)`, with the options of `MixClient.connect`."""

    def train(flags: tuple[str, ...] = (), folder: Path = data, **options: Any) -> Trainer:
        code = ("--volume", f"{Path(__file__).with_name('trainer.py')}:/trainer/trainer.py:ro")
        environ = ("--env", f"TRAINER={json.dumps(options)}")
        command = ("python", "-W", "error", "/trainer/trainer.py")
        containers.append(Container(engine, CLIENT, (*LIMITED, *code, *environ, *flags), command))
        return Trainer(containers[-1], folder / "mixture.yaml")

    return train


def digest_of(config: Path, steps: int) -> str:
    """The digest of so many batches, as trainer.py makes it, without a container or a server."""
    digest = ""
    with local_client(build_nodes(load_config(config), config)) as client:
        batches = client.batches(batch_size=8, key=7)
        for _ in range(steps):
            digest = hashlib.sha256(digest.encode() + next(batches)["tokens"].tobytes()).hexdigest()
    return digest
