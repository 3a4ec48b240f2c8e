"""A mixture with sources on other server processes, of which some are killed and replaced while trainers read."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from mixserve.build import open_nodes
from mixserve.local import local_client
from mixserve_client import MixClient
from tests.ports import free_ports
from tests.processes import DEADLINE_S, ServerProcess, server_process
from tests.remote.serving import write_yaml

SIZE, LENGTH, STEP_S = 32, 512, 0.002
NAMES = ("web", "code", "books")


def tokens(name: str, weight: float = 1.0) -> str:
    return f"{{kind: tokens, path: {name}.bin, dtype: uint16, sequence_length: {LENGTH}, weight: {weight}}}"


class DataServer:
    """A process that serves one source at a fixed port, again after it was killed."""

    def __init__(self, folder: Path, name: str, number: int):
        self.port, self._number = free_ports(), number
        self.address = f"127.0.0.1:{self.port}"
        self._file = write_yaml(folder, f"data-{number}.yaml", {"data": {name: tokens(name)}})
        self._file.write_text(self._file.read_text() + f"server: {{port: {self.port}}}\n")
        self._process = ServerProcess(self._file)

    def wait(self) -> None:
        """Return when it serves."""
        self._process.address()

    def kill(self) -> None:
        self._process.kill()

    def start(self) -> None:
        """Another process takes the place of the one that was killed; return when it serves."""
        self._process = ServerProcess(self._file)
        self.wait()

    def replace(self) -> None:
        self.kill()
        self.start()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        ids = np.random.default_rng(number).integers(0, 1 << 16, LENGTH * (400 + 100 * number))
        ids.astype(np.uint16).tofile(tmp_path / f"{name}.bin")
    return tmp_path


@pytest.fixture
def servers(folder: Path) -> Iterator[list[DataServer]]:
    """Two replicas of `code`, and one server of `books`."""
    with ExitStack() as opened:
        made = [DataServer(folder, name, number) for number, name in enumerate(("code", "code", "books"))]
        for one in made:
            opened.callback(one.kill)
        for one in made:
            one.wait()
        yield made


class Trainer(threading.Thread):
    """Reads batch after batch until it is told to end; `found` has what came."""

    def __init__(self, address: str):
        super().__init__(daemon=True)
        self._address = address
        self.found: list[bytes] = []
        self.error: BaseException | None = None
        self.over = threading.Event()

    def run(self) -> None:
        try:
            with MixClient.connect(self._address, patience_s=60) as client:
                batches = client.batches(SIZE, 7, prefetch=1)
                while not self.over.wait(STEP_S):
                    self.found.append(digest(next(batches)))
        except BaseException as error:
            self.error = error

    def wait_for_more(self, batches: int) -> None:
        """Return when so many more batches have come."""
        wanted, deadline = len(self.found) + batches, time.monotonic() + DEADLINE_S
        while len(self.found) < wanted:
            assert self.is_alive(), self.error
            assert time.monotonic() < deadline, "no batches come"
            self.join(0.005)


def digest(batch: dict[str, np.ndarray]) -> bytes:
    return hashlib.sha256(batch["tokens"].tobytes()).digest()


@pytest.mark.parametrize("processes", [1, 2])
def test_replicas_are_killed_and_replaced_while_trainers_read(folder, servers, processes):
    first, second, alone = servers
    far = {
        "web": tokens("web"),
        "code": f"{{kind: remote, address: ['{first.address}', '{second.address}'], weight: 1}}",
        "books": f"{{kind: remote, address: '{alone.address}', mixture: data, source: books, weight: 1}}",
    }
    there = write_yaml(folder, "there.yaml", {"train": far})
    there.write_text(there.read_text() + "server: {port: 0}\n")
    with server_process(there, "--processes", str(processes), real=processes > 1) as front:
        trainers = [Trainer(front.address()) for _ in range(2)]
        for trainer in trainers:
            trainer.start()
        for harm in (first.kill, first.start, second.kill, second.start, alone.replace):
            for trainer in trainers:
                trainer.wait_for_more(50)
            harm()
        for trainer in trainers:
            trainer.wait_for_more(50)
            trainer.over.set()
            trainer.join(DEADLINE_S)
            assert trainer.error is None, trainer.error
    here = write_yaml(folder, "here.yaml", {"train": {name: tokens(name) for name in NAMES}})
    expected = local_client(open_nodes(here)).batches(SIZE, 7)
    most = max(trainers, key=lambda trainer: len(trainer.found)).found
    assert most == [digest(next(expected)) for _ in most]
    assert all(trainer.found == most[: len(trainer.found)] for trainer in trainers)
