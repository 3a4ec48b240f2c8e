"""The memory of this process, and the most that a block needs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """MiB more than before the block: at most, and at its end."""

    most: float = 0.0
    kept: float = 0.0


@contextmanager
def memory_peak() -> Iterator[Peak]:
    """What the block needs. Skips the test where the kernel does not tell."""
    peak = Peak()
    gc.collect()
    try:
        _RESET.write_text("5")  # from now on: the most so far may come from another test
    except OSError as error:
        pytest.skip(f"the peak of memory cannot be measured here: {error}")
    before = _mib("VmRSS")
    yield peak
    peak.most, peak.kept = _mib("VmHWM") - before, _mib("VmRSS") - before


def _mib(name: str) -> float:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(name)) / 1024
