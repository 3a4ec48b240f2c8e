"""The server's memory beyond the data, while eight clients iterate over large batches."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.common.spread import spread
from benchmarks.common.targets import Row
from benchmarks.common.usage import forget_peaks, memory_bytes
from benchmarks.crowd.iterating import MODULE, SHARED_MEMORY, TCP, total_speed
from benchmarks.crowd.scenario import Outcome, Step, Window, children, server

_CLIENTS = 8
_SIZE = 1024
_WARM_UP_S, _SECONDS = 3.0, 4.0
# VmHWM is the peak of all resident memory. The peak without shared pages needs samples of both.
_LOOK_EVERY_S = 0.02


def run(_repetitions: int, step: Step) -> Outcome:
    figures = {way: _on(way, step) for way in (TCP, SHARED_MEMORY)}
    rows = [_row(TCP, "", figures[TCP]["peak_mb"]), _row(SHARED_MEMORY, ", without", figures[SHARED_MEMORY]["own_mb"])]
    return Outcome(rows, [_note(way, one) for way, one in figures.items()], figures)


def _note(way: str, one: dict[str, Any]) -> str:
    before, peak, own, pages = (_megabytes(one[f"{name}_mb"]) for name in ("before", "peak", "own", "clients_pages"))
    return (
        f"Memory over {way}: {before} before the first client, at most {peak} more; the clients' own pages {pages}, "
        f"all but those {own} more; {one['gigabytes_s']:.3f} GB/s."
    )


def _row(way: str, without: str, megabytes: float | None) -> Row:
    name = f"{_CLIENTS} clients over {way}, batches of {_SIZE}: the server's peak beyond the data"
    suffix = f"{without} the clients' pages" if without else ""
    return Row(name + suffix, "MB", "<=", 400, None if megabytes is None else spread([megabytes]))


def _on(way: str, step: Step) -> dict[str, Any]:
    step(f"memory, {_CLIENTS} clients over {way}")
    with server() as (address, pid), children(_CLIENTS, MODULE, address, way) as clients:
        before = memory_bytes(pid, "VmRSS")
        forget_peaks([pid])
        with _watch_memory(pid) as peaks:
            speed = total_speed(clients, _SIZE, Window.after(_WARM_UP_S, _SECONDS))
        peak = memory_bytes(pid, "VmHWM")
    return {
        "before_mb": _mb(before),
        "peak_mb": _mb(None if peak is None or before is None else peak - before),
        "own_mb": _mb(None if before is None or not peaks else max(rss - pages for rss, pages in peaks) - before),
        "clients_pages_mb": _mb(max((pages for _, pages in peaks), default=None)),
        "gigabytes_s": speed,
    }


@contextmanager
def _watch_memory(pid: int) -> Iterator[list[tuple[int, int]]]:
    """Sample (resident memory, the part of it in pages shared with clients), in bytes, until the block ends."""
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_EVERY_S):
            resident, pages = memory_bytes(pid, "VmRSS"), memory_bytes(pid, "RssShmem")
            if resident is not None and pages is not None:
                seen.append((resident, pages))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        done.set()
        watching.join()


def _mb(size: int | None) -> float | None:
    return None if size is None else size / 1e6


def _megabytes(size: float | None) -> str:
    return "unknown" if size is None else f"{size:.0f} MB"
