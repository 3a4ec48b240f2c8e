"""Processes forked from one that has imported what they need, so that they start at once without imports.

They are real processes: tests kill them for real, and they share nothing with the test. They must run a module's
function.
"""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Not "fork": the child would inherit locks of JAX's and gRPC's threads without the threads. Not "spawn": it imports
# everything again.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


class Forked:
    """`target(*arguments)` in a process with this environment; its output goes to `log`, and warnings are errors."""

    def __init__(self, target: Callable[..., object], *arguments: Any, log: Path):
        reading, writing = _CONTEXT.Pipe(duplex=False)
        log.touch()
        self._log, self._input = log, writing
        # The fork server has the environment of its own start, so the present one goes along.
        self._process = _CONTEXT.Process(
            target=_run, args=(reading, str(log), dict(os.environ), target, arguments), daemon=True
        )
        self._process.start()
        reading.close()
        self.pid: int = self._process.pid or 0

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def tell(self, line: str) -> None:
        """Send a line to its standard input."""
        os.write(self._input.fileno(), f"{line}\n".encode())

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout_s: float) -> int:
        """The exit code. Raises TimeoutError."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            raise TimeoutError(f"the process has not ended in {timeout_s} s: {self.log()}")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self, timeout_s: float = 60) -> None:
        """Send SIGKILL; return when the process has ended."""
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
        self.wait(timeout_s)
        self._input.close()


def wait_for_line(process: Forked, pattern: Callable[[str], Any], deadline_s: float) -> Any:
    """The first match of `pattern` in the log, as soon as there is one."""
    deadline = time.monotonic() + deadline_s
    while not (found := pattern(process.log())):
        if process.poll() is not None:  # it may have written the line before it ended
            found = pattern(process.log())
            assert found, f"the process ended with {process.poll()}: {process.log()}"
            return found
        assert time.monotonic() < deadline, f"not found in: {process.log()}"
        time.sleep(0.01)
    return found


HANGS = "it hangs"
SOON_S = 10


def in_a_fork(task: Callable[[], object]) -> str:
    """What `task` returns or raises in a process forked here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # A process that hangs cannot report it; the alarm ends the process, and the parent sees the signal.
        signal.alarm(SOON_S)
        try:
            said = repr(task())
        except Exception as error:
            said = f"{type(error).__name__}: {error}".replace(str(os.getpid()), "{pid}")
        os.write(writing, said.encode())
        os._exit(0)  # skips JAX's and gRPC's exit handlers, which need threads that a fork lacks
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    return HANGS if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else said


def _run(
    reading: Connection,
    log: str,
    environment: dict[str, str],
    target: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(reading.fileno(), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdin = os.fdopen(0)
    # Unbuffered, since a killed process cannot flush.
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    warnings.simplefilter("error")
    target(*arguments)
