"""The targets of the training loop: how long it waits, how much slower it gets, and what `next` costs by itself."""

from collections.abc import Mapping
from typing import Any

from benchmarks.common.targets import Row
from benchmarks.race.roster import RAW_GRPC
from benchmarks.trainer.roster import SHARED_MEMORY, TCP
from benchmarks.trainer.summary import Loops, next_ms, pace, slowdown, waiting

_WAITING_PERCENT, _SLOWDOWN, _NEXT_MS = 0.5, 1.1, 0.05


def rows(loops: Loops) -> list[Row]:
    """Rows for both transports at every size and step; `next` where steps are longest, so that a batch is there."""
    steps = loops.results["steps"]
    longest = max(one["step_ms"] for one in steps)
    cells = [(name, one) for name in (SHARED_MEMORY, TCP) for one in steps]
    return [
        *(_waiting(loops, name, one) for name, one in cells),
        *(_slowdown(loops, name, one) for name, one in cells),
        *(_next(loops, name, one) for name, one in cells if one["step_ms"] == longest),
    ]


def _waiting(loops: Loops, name: str, one: Mapping[str, Any]) -> Row:
    value = loops.at(one["step_ms"]).spread(waiting, name, one["batch"])
    return Row(_name(name, one), f"% of the time waited{_remark(loops, one)}", "<", _WAITING_PERCENT, value)


def _remark(loops: Loops, one: Mapping[str, Any]) -> str:
    """Whether the raw stream could not keep up, with the machine to itself or beside steps."""
    asked = pace(one["batch"], one["step_ms"])
    for beside, where in ((False, "alone"), (True, "beside steps")):
        raw = loops.raw(one["batch"], beside)
        if raw is not None and raw.median < asked:
            return f" ({RAW_GRPC} {where} could not)"
    return ""


def _slowdown(loops: Loops, name: str, one: Mapping[str, Any]) -> Row:
    value = slowdown(name, one["batch"], loops.at(one["step_ms"]))
    return Row(_name(name, one), "slowdown", "<=", _SLOWDOWN, value)


def _next(loops: Loops, name: str, one: Mapping[str, Any]) -> Row:
    value = loops.at(one["step_ms"]).spread(next_ms, name, one["batch"])
    return Row(_name(name, one), "`next` of a batch that is there, p50, ms", "<", _NEXT_MS, value)


def _name(name: str, one: Mapping[str, Any]) -> str:
    return f"{name}, batches of {one['batch']}, {one['step_ms']} ms"
