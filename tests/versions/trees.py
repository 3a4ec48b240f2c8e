"""The code of another version, and programs that run it.

`git archive` unpacks it into build/, and PYTHONPATH puts it before what is installed. The libraries are those of today.
"""

import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.forked import wait_for_line
from tests.processes import DEADLINE_S

ROOT = Path(__file__).parents[2]
# The last commit before requests say who sends them. A release puts its own commit here (docs/releasing.md).
OLD = "63830f7da2ad680a10f92cc0ecd1a7011f075cd7"


def unpack(commit: str = OLD) -> Path:
    """The tree of `commit`; skips the test if this clone lacks it, or fails with MIXSERVE_FULL_CLONE set."""
    folder = ROOT / "build" / "versions" / commit
    if not (folder / "client").exists():
        packed = subprocess.run(["git", "-C", ROOT, "archive", commit, "mixserve", "client"], capture_output=True)
        if packed.returncode != 0:
            # CI has a full clone, and must not leave these tests out without a word.
            end = pytest.fail if os.environ.get("MIXSERVE_FULL_CLONE") else pytest.skip
            end(f"this clone lacks the commit {commit[:7]}: git fetch --unshallow")
        made = folder.with_name(f"{commit}.{os.getpid()}")
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(made, filter="data")
        try:
            made.rename(folder)
        except OSError:  # another process has unpacked it meanwhile
            assert (folder / "client").exists()
    return folder


def environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{tree}:{tree / 'client'}", "PYTHONWARNINGS": "error"}


class Server:
    """`mixserve serve` of a tree, with the interface that `wait_for_line` wants."""

    def __init__(self, tree: Path, config: Path, state: Path):
        self._log = state.with_suffix(".log")
        command = [sys.executable, "-m", "mixserve", "serve", config.name, "--state-dir", state]
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=config.parent, env=environment(tree), stdout=out, stderr=out)
        self.poll = self.process.poll

    def log(self) -> str:
        return self._log.read_text(errors="replace")


@contextmanager
def serving(config: Path, states: Mapping[Path, Path]) -> Iterator[list[str]]:
    """The addresses of servers of the trees in `states`, each with its state folder; all end well."""
    # They start at the same time: each imports JAX first, for seconds.
    servers = [Server(tree, config, state) for tree, state in states.items()]
    try:
        yield [wait_for_line(server, _find_address, DEADLINE_S).group(1) for server in servers]
        for server in servers:
            server.process.terminate()
        for server in servers:
            assert server.process.wait(DEADLINE_S) == 0, server.log()
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait()


def _find_address(log: str) -> re.Match[str] | None:
    return re.search(r"serving on (\S+)", log)
