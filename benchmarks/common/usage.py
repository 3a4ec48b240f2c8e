"""CPU seconds and peak resident memory of processes, from /proc; None on systems without it (macOS)."""

import os
from collections.abc import Iterable
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


def _stat(path: Path) -> list[str]:
    """The fields of a process after its name, which may contain spaces; empty if the process has ended."""
    return " ".join(_lines(path)).rpartition(")")[2].split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
