"""What is fuzzed: a function of bytes, the errors that it may raise, and valid inputs to begin with.

`Checked` calls it, and raises Fault for anything that one input must not do to a process.
"""

import os
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CPU_S = 0.1
MEMORY_BYTES = 64 << 20
_MESSAGE_CHARACTERS = 8000
_HEAD = 200  # of the input, in a fault's message


class Fault(AssertionError):
    """An input does what none may do."""


@dataclass(frozen=True)
class Target:
    """`run(data)` may raise `errors`, and nothing else; `seeds` makes valid inputs."""

    name: str
    run: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...]
    seeds: Callable[[], Sequence[bytes]]
    share: float = 1.0  # of the inputs, beside that of others: slow ones get fewer
    largest: int = 2 << 20  # bytes of an input: those of most requests


class Checked:
    """Calls a target, and checks each call: what it raises, the CPU time that it takes, and the memory."""

    def __init__(self, target: Target):
        self.target = target
        self.inputs = 0
        self.refused = 0
        self.slowest_s = 0.0
        self.most_bytes = 0  # that one input took, as far as it was measured
        self._peak = 0
        self._warm_up()

    def __call__(self, data: bytes) -> None:
        """Raises Fault."""
        self.inputs += 1
        began = time.process_time()
        self._call(data)
        took_s = time.process_time() - began
        if took_s > self.slowest_s:
            # The collector of garbage, or another process on this core, may have taken the time.
            took_s = min(took_s, self._time(data), self._time(data)) if took_s > CPU_S else took_s
            self.slowest_s = max(self.slowest_s, took_s)
            if took_s > CPU_S:
                raise Fault(f"{took_s:.2f} s of CPU time for {_show(data)}")
        # The largest memory of the process so far: it grows if an input takes more than all before it.
        peak = _peak()
        if peak > self._peak + MEMORY_BYTES // 2:
            self._check_memory(data)
            self._peak = _peak()

    def _call(self, data: bytes) -> None:
        try:
            self.target.run(data)
        except self.target.errors as error:
            self.refused += 1
            if len(str(error)) > _MESSAGE_CHARACTERS:
                raise Fault(f"a message of {len(str(error))} characters for {_show(data)}") from error
        except Exception as error:
            raise Fault(f"{type(error).__name__}: {error!s:.300} for {_show(data)}") from error

    def _time(self, data: bytes) -> float:
        began = time.process_time()
        self._call(data)
        return time.process_time() - began

    def _check_memory(self, data: bytes) -> None:
        """Measure this input alone. Raises Fault."""
        with suppress(OSError):
            _forget_peak()
            before = _status("VmRSS")
            self._call(data)
            took = _status("VmHWM") - before
            self.most_bytes = max(self.most_bytes, took)
            if took > MEMORY_BYTES:
                raise Fault(f"{took >> 20} MiB of memory for {_show(data)}")

    def _warm_up(self) -> None:
        """Load and make what the first calls load and make."""
        for seed in self.target.seeds():
            self._call(seed)
        self._call(b"")
        self.refused = 0
        with suppress(OSError):
            _forget_peak()  # of what this process did before, which may be more than any input takes
        self._peak = _peak()


def _forget_peak() -> None:
    """Make the largest memory so far that of now. Raises OSError where a system cannot."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(entry: str) -> int:
    """Bytes, from /proc/self/status."""
    with open(f"/proc/{os.getpid()}/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(entry))


def _show(data: bytes) -> str:
    return f"{len(data)} bytes: {data[:_HEAD].hex()}{'…' if len(data) > _HEAD else ''}"
