"""Real server processes for tests: started, asked, killed."""

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

DEADLINE_S = 90


def write_mixture(folder: Path, name: str = "mixture.yaml", **options: str | int) -> Path:
    """A mixture of two token files, and its configuration; `options` are the mixture's."""
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
    """`mixserve serve` in a process of its own; its log is `log()`."""

    def __init__(self, config: Path, *flags: str):
        self._log = config.with_suffix(f".{time.monotonic_ns()}.log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mixserve", "serve", str(config), *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONWARNINGS": "error"},
            )

    def log(self) -> str:
        return self._log.read_text()

    def address(self) -> str:
        """Where the server serves; waits until it does."""
        return self.wait_for_log(r"serving on (\S+)").group(1)

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + DEADLINE_S
        while (match := re.search(pattern, self.log())) is None:
            assert self.process.poll() is None, f"the server ended: {self.log()}"
            assert time.monotonic() < deadline, f"no {pattern!r} in: {self.log()}"
            time.sleep(0.02)
        return match

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)


@contextmanager
def server_process(config: Path, *flags: str) -> Iterator[ServerProcess]:
    server = ServerProcess(config, *flags)
    try:
        yield server
    finally:
        server.kill()
