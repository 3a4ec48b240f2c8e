"""Replicas of one mixture that can be harmed in every way that a network, a disk or an operator harms them."""

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.chaos import troubled
from tests.links import Faults
from tests.ports import free_ports
from tests.processes import ServerProcess, freeze
from tests.proxy import Proxy

MIXTURE = "train"
SIZE, LENGTH = 128, 4096  # a batch of 1 MiB, so that an iterator has a second of its trainer's steps in flight
_SLOW_S = 0.1  # for a batch, 50 times what it takes otherwise

_CONFIG = """
mixtures:
  train:
    sources:
      files: {{kind: tokens, path: files.bin, dtype: uint16, sequence_length: {length}, weight: {weight}}}
      made:
        kind: factory
        function: "troubled:make"
        content_id: made
        arguments: {{rows: 300, length: {length}, hang_file: hang, slow_file: slow}}
        weight: 0.3
server: {{port: {port}, bulk_port: {bulk_port}}}
"""


class Replica:
    """A server process on fixed ports, and the proxy through which trainers reach it."""

    def __init__(self, folder: Path, number: int):
        self.number = number
        self._folder = folder
        folder.mkdir()
        shutil.copy(Path(troubled.__file__), folder / "troubled.py")
        tokens = np.random.default_rng(0).integers(0, 1 << 16, 1000 * LENGTH)
        tokens.astype(np.uint16).tofile(folder / "files.bin")
        self._port, self._bulk_port = (free_ports() for _ in range(2))
        self.config = self._write("right.yaml", 0.7)
        self._other = self._write("other.yaml", 0.6)
        self._server = ServerProcess(self.config)
        self._logs = list[ServerProcess]()
        self.proxy = Proxy(f"127.0.0.1:{self._port}", bulk_port=self._bulk_port)
        self.proxy.__enter__()

    def wait(self) -> None:
        """Return when it serves."""
        self._server.address()

    def logs(self) -> str:
        """Of all its processes so far."""
        return "".join(one.log() for one in (*self._logs, self._server))

    def close(self) -> None:
        self.proxy.close()
        self._server.process.send_signal(signal.SIGCONT)
        self._server.kill()

    def stop(self) -> None:
        """SIGSTOP: its kernel answers, and it does not."""
        freeze(self._server.process.pid)

    def go_on(self) -> None:
        self._server.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._server.kill()

    def start(self, *, other: bool = False) -> None:
        """Start again at the same ports, with the right mixture or another one; return when it serves."""
        self._logs.append(self._server)
        self._server = ServerProcess(self._other if other else self.config)
        self.wait()

    def mark(self, name: str, text: str = "") -> None:
        """Make the file that troubles the source."""
        (self._folder / name).write_text(text)

    def unmark(self, name: str) -> None:
        (self._folder / name).unlink()

    def _write(self, name: str, weight: float) -> Path:
        file = self._folder / name
        file.write_text(_CONFIG.format(length=LENGTH, weight=weight, port=self._port, bulk_port=self._bulk_port))
        return file


@contextmanager
def running(folder: Path, count: int) -> Iterator[list[Replica]]:
    """So many replicas that serve, in folders of their own."""
    with ExitStack() as opened:
        made = list[Replica]()
        for number in range(count):
            made.append(Replica(folder / f"replica-{number}", number))
            opened.callback(made[-1].close)
        for replica in made:
            replica.wait()
        yield made


class Harm(NamedTuple):
    """Something that happens to a replica, and how it ends."""

    name: str
    begin: Callable[[], object]
    end: Callable[[], object]


def harm(kind: str, replica: Replica, choice: random.Random) -> Harm:
    """A harm of that kind, with what it leaves open drawn at random."""
    proxy = replica.proxy
    if kind == "cut":
        reset, refused = choice.random() < 0.5, choice.random() < 0.5
        do: Callable[..., None] = proxy.cut if refused else proxy.drop
        name = f"{'cut' if refused else 'dropped'} with {'RST' if reset else 'FIN'}"
        return Harm(name, lambda: do(reset=reset), proxy.restore)
    if kind == "link":
        faults = Faults.draw(choice)
        direction = choice.choice(("up", "down", "both"))
        port = choice.choice((None, proxy.grpc_port, proxy.bulk_port))
        what = "all ports" if port is None else "gRPC" if port == proxy.grpc_port else "bulk"
        return Harm(f"{direction} of {what}: {faults}", lambda: proxy.set(faults, direction, port), proxy.restore)
    if kind == "flips":
        rate, seed = 10 ** choice.uniform(-6, -4), choice.randrange(1 << 32)
        return Harm(f"flips {rate:.1e} of the bytes", lambda: proxy.flip_bits(rate, seed), proxy.restore)

    def replace(*, other: bool) -> None:
        replica.kill()
        replica.start(other=other)

    return {
        "stop": Harm("stopped", replica.stop, replica.go_on),
        "hang": Harm("its source hangs", lambda: replica.mark("hang"), lambda: replica.unmark("hang")),
        "slow": Harm("50 times slower", lambda: replica.mark("slow", f"{_SLOW_S}"), lambda: replica.unmark("slow")),
        "kill": Harm("killed", replica.kill, replica.start),
        "other": Harm("another mixture", lambda: replace(other=True), lambda: replace(other=False)),
    }[kind]


KINDS = ("stop", "hang", "slow", "kill", "other", "cut", "link", "flips")
