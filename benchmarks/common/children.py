"""The parent's side of child processes: one line of JSON goes in, one line comes back."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.common.pipes import send
from benchmarks.common.work import FOLDER, ROOT

_STOP_LIMIT_S = 10.0


class ChildFailed(Exception):
    """A child process cannot continue; the message says why."""


class Child:
    """A process that runs a module; a context manager that ends it. Its stderr goes to a log file."""

    def __init__(self, module: str, *arguments: str, python: Path | None = None):
        command = [str(python or sys.executable), "-m", module, *arguments]
        name = "-".join((module, *arguments)).replace("benchmarks.", "").replace("/", "-")
        log = FOLDER / f"{name}.log"
        with log.open("a") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT
            )
        self._log = log.relative_to(ROOT)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: Any) -> None:
        """Send a line. Raises ChildFailed if the process has ended."""
        assert self._process.stdin is not None
        try:
            send(self._process.stdin, message)
        except BrokenPipeError:
            raise ChildFailed(f"it has ended; see {self._log}") from None

    def answer(self, limit_s: float) -> Any:
        """The next line. Raises ChildFailed if it reports an error or does not come within `limit_s`."""
        assert self._process.stdout is not None
        # A pipe has no read timeout: killing the process closes the pipe, and readline returns nothing.
        timer = threading.Timer(limit_s, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise ChildFailed(f"no answer, within {limit_s:.0f} s at most; see {self._log}")
        answer = json.loads(line)
        if "error" in answer:
            raise ChildFailed(f"{answer['error']}; see {self._log}")
        return answer

    def close(self) -> None:
        """Close stdin, which ends the process and the processes that it has started; kill it after 10 s."""
        try:
            self._process.communicate(timeout=_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
