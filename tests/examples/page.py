"""Pages that a reader follows in an empty folder: their files are written, and their commands run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.processes import ServerProcess

DEADLINE_S = 240  # for hangs: each command takes seconds
DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[tuple[str, str]]:
    """The (language, text) of each block of a page in `docs`."""
    return re.findall(r"```(\w+)\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)


def named(text: str) -> str | None:
    """The file that the first line of a block names, as in `# train.py`."""
    found = re.match(r"# (\w+\.\w+)\n", text)
    return found and found.group(1)


class Reader:
    """Does in `folder` what a page says; `mixserve serve` is a server in the background, on a free port."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._server: ServerProcess | None = None
        self._address = "127.0.0.1:0"
        self._environ = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            # A page that trains three times compiles once. No command is killed while it writes to this cache.
            "JAX_COMPILATION_CACHE_DIR": str(folder / ".compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.kill()

    def write(self, text: str) -> None:
        """Write a block to the file that it names."""
        name = named(text)
        assert name is not None, text
        (self.folder / name).write_text(self._here(text), "utf-8")

    def run(self, command: str) -> str:
        """What a block of commands prints; it must exit with 0."""
        ended = self.try_to_run(command)
        assert ended.returncode == 0, f"{command}{ended.stdout}{ended.stderr}"
        return ended.stdout

    def run_python(self, code: str) -> str:
        """What Python code prints; it must exit with 0."""
        script = self.folder / "block.py"
        script.write_text(self._here(code), "utf-8")
        return self.run("python block.py")

    def try_to_run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._here(command)],
            cwd=self.folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def serve(self, command: str) -> None:
        """Start `mixserve serve FILE` when the server of before has ended, at the same address."""
        if self._server is not None:
            assert self._server.terminate() == 0, self._server.log()
        config = self.folder / command.split()[2]
        self._server = ServerProcess(config, "--port", self._address.rpartition(":")[2], real=True)
        self._address = self._server.address()

    def _here(self, text: str) -> str:
        """The text of a page with the server's address in place of the default one."""
        return text.replace("127.0.0.1:50051", self._address)
