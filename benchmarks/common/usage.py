"""CPU seconds and peak resident memory of processes, from /proc; None on systems without it (macOS)."""

import os
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PROC = Path("/proc")


def family(pid: int, without: Iterable[int] = ()) -> list[int]:
    """The process and its descendants, except those in `without` and their descendants."""
    children: dict[int, list[int]] = {}
    for stat in _PROC.glob("[0-9]*/stat"):
        if fields := _stat(stat):
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    left_out, found, todo = set(without), [], [pid]
    while todo:
        one = todo.pop()
        if one not in left_out:
            found.append(one)
            todo += children.get(one, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float | None:
    """User and system time that the processes have used since they started, to 10 ms each."""
    if not _PROC.exists():
        return None
    ticks = 0
    for pid in pids:
        if fields := _stat(_PROC / str(pid) / "stat"):
            # utime and stime, fields 14 and 15 of proc(5); `_stat` starts with field 3.
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def forget_peaks(pids: Iterable[int]) -> None:
    """Reset the peaks of the processes' resident memory."""
    for pid in pids:
        path = _PROC / str(pid) / "clear_refs"
        if path.exists():
            # "5" resets VmHWM, the peak resident set (Linux, proc(5)).
            path.write_text("5")


def peak_bytes(pids: Iterable[int]) -> int | None:
    """Sum of the processes' peaks of resident memory; shared pages count once per process."""
    if not _PROC.exists():
        return None
    return sum(memory_bytes(pid, "VmHWM") or 0 for pid in pids)


def memory_bytes(pid: int, field: str) -> int | None:
    """A field of the process's memory status in bytes: VmRSS, VmHWM, RssShmem, …"""
    for line in _lines(_PROC / str(pid) / "status"):
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


@contextmanager
def others_share() -> Iterator[Callable[[], float]]:
    """What tells, after the block, which part of the cores' time others had than this process and its ended children.

    0 on systems without /proc.
    """
    before, own = _busy_s(), _own_s()
    share = 0.0
    yield lambda: share
    whole, busy = (after - at for after, at in zip(_busy_s(), before, strict=True))
    if whole > 0:
        share = min(1.0, max(0.0, (busy - (_own_s() - own)) / whole))


def _busy_s() -> tuple[float, float]:
    """The time of all cores, and what of it was not idle."""
    fields = (_lines(_PROC / "stat") or ["cpu 0 0 0 0 0"])[0].split()[1:]
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields[:8]]
    return sum(ticks), sum(ticks) - sum(ticks[3:5])


def _own_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _stat(path: Path) -> list[str]:
    """The fields of a process after its name, which may contain spaces; empty if the process has ended."""
    return " ".join(_lines(path)).rpartition(")")[2].split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
