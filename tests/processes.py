"""Real server processes for tests: started, called, killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.forked import Forked, wait_for_line

DEADLINE_S = 90
STARTS_S = 150  # a server of several processes, each of which imports everything, on a busy machine
ONE_SIZE = (4096,)  # of plans: one program to compile, so that servers start fast


def write_mixture(folder: Path, name: str = "mixture.yaml", **options: str | int) -> Path:
    """Write a mixture of two token files, and its configuration; `options` belong to the mixture."""
    rng = np.random.default_rng(0)
    for file in ("a.bin", "b.bin"):
        rng.integers(0, 1 << 16, 4000).astype(np.uint16).tofile(folder / file)
    source = "{{kind: tokens, path: {}.bin, dtype: uint16, sequence_length: 16, weight: {}}}"
    config = folder / name
    settings = "".join(f"    {option}: {value}\n" for option, value in options.items())
    config.write_text(
        f"mixtures:\n  train:\n{settings}    sources:\n"
        f"      a: {source.format('a', 0.7)}\n      b: {source.format('b', 0.3)}\n"
        "server: {port: 0}\n"
    )
    return config


class ServerProcess:
    """`mixserve serve` in a process of its own; its log is `log()`.

    It is forked with everything imported; with `real=True` it starts as a user starts it.
    """

    def __init__(self, config: Path, *flags: str, real: bool = False):
        log = config.with_suffix(f".{time.monotonic_ns()}.log")
        self.process = Command(config, *flags, log=log) if real else Forked(_serve, str(config), *flags, log=log)
        self.log = self.process.log

    def address(self) -> str:
        """The server's address; waits until it serves."""
        return wait_for_line(self.process, lambda log: re.search(r"serving on (\S+)", log), STARTS_S).group(1)

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        return wait_for_line(self.process, lambda log: re.search(pattern, log), DEADLINE_S)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        self.process.kill(DEADLINE_S)


def freeze(pid: int) -> None:
    """Stop all threads of a process. SIGSTOP returns before they have stopped, and they may still answer."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + DEADLINE_S
    while any(state != "T" for state in _thread_states(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _thread_states(pid: int) -> list[str]:
    # The third field of `stat`, after a name in parentheses. Systems without /proc have none.
    return [file.read_text().rpartition(")")[2].split()[0] for file in Path(f"/proc/{pid}/task").glob("*/stat")]


class Command:
    """`mixserve serve ARGUMENTS` as a user starts it, with the interface of `Forked`."""

    def __init__(self, *arguments: str | Path, log: Path):
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mixserve", "serve", *map(str, arguments)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONWARNINGS": "error"},
            )
        self.pid = self._process.pid
        self.poll, self.wait, self.send_signal = self._process.poll, self._process.wait, self._process.send_signal

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self, timeout_s: float) -> None:
        self._process.kill()
        self._process.wait(timeout_s)


def _serve(*arguments: str) -> None:
    from mixserve.cli.main import app

    app(["serve", *arguments], prog_name="mixserve")


@contextmanager
def server_process(config: Path, *flags: str, real: bool = False) -> Iterator[ServerProcess]:
    server = ServerProcess(config, *flags, real=real)
    try:
        yield server
    finally:
        server.kill()
