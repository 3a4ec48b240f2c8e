"""A Python command -> a process that is ours to freeze and to kill, and that does not outlive us."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_TAIL_LINES = 15
_STOP_S = 20.0


class Child:
    """`python -m ARGUMENTS`, its output appended to `log`; killed at the end of the `with` block if it still runs.

    Where `compiled` is given, JAX keeps its compiled programs there, and a process that is started again is quicker.
    """

    def __init__(self, name: str, arguments: list[str], log: Path, *, compiled: Path | None = None):
        self.name = name
        self._log = log
        environment = {"JAX_PLATFORMS": "cpu"}  # several processes that each reserve the one GPU get none
        if compiled is not None:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        with log.open("ab") as output:
            self._before = output.tell()  # of the log: what processes before this one said
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
            )

    def has_ended(self) -> bool:
        """Whether it has ended as it should. Raises RuntimeError, with the end of its log, where it failed."""
        status = self._process.poll()
        if status:
            tail = self._log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:]
            raise RuntimeError("\n".join([f"the {self.name} ended with exit status {status}; its last words:", *tail]))
        return status is not None

    def freeze(self) -> None:
        """Stop it where it is, and return when it stands still."""
        self._process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise RuntimeError(f"the {self.name} ended before it could be frozen")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended as it should. Raises RuntimeError where it failed, or has not in `timeout_s`."""
        self._ended_in(timeout_s)
        self.has_ended()

    def _ended_in(self, timeout_s: float) -> int:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"the {self.name} has not ended in {timeout_s:.0f} s") from error

    def stop(self) -> None:
        """SIGTERM, and wait until it has ended in its own way; or by the signal, before it had said anything."""
        self._process.terminate()
        if self._ended_in(_STOP_S) != -signal.SIGTERM or self._log.stat().st_size > self._before:
            self.has_ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
