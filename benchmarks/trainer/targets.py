"""The target: mixserve makes the loop wait for at most 1 % of its time, if the raw transport alone could keep up."""

from collections.abc import Mapping
from typing import Any

from benchmarks.common.targets import Row
from benchmarks.race.roster import RAW_GRPC
from benchmarks.trainer.roster import SHARED_MEMORY, TCP
from benchmarks.trainer.summary import Loops, pace, waiting

_LIMIT = 1.0


def rows(loops: Loops) -> list[Row]:
    """A row for every size and step that the raw stream, with the machine to itself, can feed."""
    kept_up = [one for one in loops.results["steps"] if _keeps_up(loops, one)]
    return [_row(loops, name, one) for name in (SHARED_MEMORY, TCP) for one in kept_up]


def _keeps_up(loops: Loops, one: Mapping[str, Any]) -> bool:
    raw = loops.raw(one["batch"], beside=False)
    return raw is not None and raw.median >= pace(one["batch"], one["step_ms"])


def _row(loops: Loops, name: str, one: Mapping[str, Any]) -> Row:
    batch, step_ms = one["batch"], one["step_ms"]
    beside = loops.raw(batch, beside=True)
    can = "" if beside is None or beside.median >= pace(batch, step_ms) else f" ({RAW_GRPC} beside steps could not)"
    value = loops.at(step_ms).spread(waiting, name, batch)
    return Row(f"{name}, batches of {batch}, {step_ms} ms", f"% of the time waited{can}", "<=", _LIMIT, value)
