"""How long a reply keeps processors busy, as it was measured: lines through sizes, and how times spread around them."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from benchmarks.common.work import ROOT

PATH = ROOT / "benchmarks" / "results" / "fleet_calibration.json"
_SLICES = 64
T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """Seconds of one processor for a reply: `fixed_s` for any, and more for each byte."""

    fixed_s: float
    byte_s: float

    def at(self, reply_bytes: int) -> float:
        return self.fixed_s + self.byte_s * reply_bytes

    @classmethod
    def through(cls, reply_bytes: Sequence[float], seconds: Sequence[float]) -> Self:
        """The line of least squared relative errors; neither part is negative."""
        sizes, times = np.array(reply_bytes), np.array(seconds)
        terms = np.stack([1 / times, sizes / times], axis=1)
        (fixed, byte), *_ = np.linalg.lstsq(terms, np.ones_like(times), rcond=None)
        if fixed < 0:
            return cls(0.0, float(np.mean(times / sizes)))
        if byte < 0:
            return cls(float(np.mean(times)), 0.0)
        return cls(float(fixed), float(byte))


# Times by their mean: so many equally likely values, whose mean is 1.
Shape = tuple[float, ...]
CONSTANT: Shape = (1.0,)


def slices_of(times: Sequence[float]) -> tuple[float, ...]:
    """Equally likely values with the distribution of measured times."""
    ordered = np.sort(np.array(times))
    return tuple(float(part.mean()) for part in np.array_split(ordered, min(_SLICES, len(ordered))))


def shape_of(times: Sequence[float]) -> Shape:
    """The shape of measured times."""
    slices = np.array(slices_of(times))
    return tuple(float(value) for value in np.round(slices / slices.mean(), 4))


@dataclass(frozen=True)
class ServiceTimes:
    """What a reply of given bytes costs. `plan` and the fixed part of `send` hold the interpreter's lock.

    `receive` is the client's. `gap` is the shape of the times between two replies that a lone reader sees, which has
    in it what the system's scheduler adds.
    """

    plan: Line
    gather: Line
    send: Line
    receive: Line
    plan_shape: Shape
    gather_shape: Shape
    gap_shape: Shape
    next_s: tuple[float, ...]  # equally likely times of a `next` after a step, if its batch is there
    socket_bytes: int  # that a connection holds between both ends, if its reader does not read
    start_s: float  # of a server, from the command to its address, with compiled programs in its folder
    cold_start_s: float  # without
    connection_bytes: int  # of a server's memory, for a client that is connected and has read a batch

    @property
    def python(self) -> Line:
        """What holds the interpreter's lock of the server."""
        return Line(self.plan.fixed_s + self.send.fixed_s, self.plan.byte_s)

    @property
    def copying(self) -> Line:
        """What does not: rows into the message, and the message into the socket."""
        return Line(self.gather.fixed_s, self.gather.byte_s + self.send.byte_s)

    def save(self, path: Path, notes: dict[str, Any]) -> None:
        path.write_text(json.dumps({"service_times": asdict(self), **notes}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path = PATH) -> Self:
        found = json.loads(path.read_text())["service_times"]
        lines = {name: Line(**found.pop(name)) for name in ("plan", "gather", "send", "receive")}
        shapes = {name: tuple(found.pop(name)) for name in ("plan_shape", "gather_shape", "gap_shape", "next_s")}
        return cls(**lines, **shapes, **found)


class Draw:
    """Values of shapes, the same ones for the same seed."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def of(self, shape: Shape) -> float:
        """A value of a shape."""
        return self.one_of(shape)

    def one_of(self, values: Sequence[T]) -> T:
        """One of equally likely values."""
        return values[int(self._random() * len(values))]
