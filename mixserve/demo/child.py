"""A Python command -> a child process that can be frozen and killed, and does not outlive this one."""

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
    """`python -m ARGUMENTS`, with its output appended to `log`. Killed at the end of the `with` block.

    `compiled` is a folder for JAX's compiled programs, so that a restarted process is quicker.
    """

    def __init__(self, name: str, arguments: list[str], log: Path, *, compiled: Path | None = None):
        self.name = name
        self._log = log
        environment = {"JAX_PLATFORMS": "cpu"}  # several processes that each reserve the one GPU get none
        if compiled is not None:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        with log.open("ab") as output:
            self._log_start = output.tell()  # earlier processes wrote to the same log
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
            )

    def has_ended(self) -> bool:
        """Whether it has ended with exit status 0. Raises RuntimeError, with the end of its log, if it failed."""
        status = self._process.poll()
        if status:
            tail = self._log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:]
            raise RuntimeError("\n".join([f"the {self.name} ended with exit status {status}; its log ends:", *tail]))
        return status is not None

    def freeze(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        # The signal is delivered later: only waitpid says when the process no longer answers requests.
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            raise RuntimeError(f"the {self.name} ended before it could be frozen")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended. Raises RuntimeError if it failed, or has not ended in `timeout_s` seconds."""
        self._wait_for_status(timeout_s)
        self.has_ended()

    def _wait_for_status(self, timeout_s: float) -> int:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"the {self.name} has not ended in {timeout_s:.0f} s") from error

    def stop(self) -> None:
        """SIGTERM, and wait until it has ended. Raises RuntimeError if it failed."""
        self._process.terminate()
        # A process that has logged nothing may have no handler for the signal yet: then it may end by the signal.
        if self._wait_for_status(_STOP_S) != -signal.SIGTERM or self._log.stat().st_size > self._log_start:
            self.has_ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
