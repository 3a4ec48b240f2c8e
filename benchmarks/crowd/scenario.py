"""Shared by the scenarios: their outcomes, the processes that they start, and common windows of time."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common.children import Child
from benchmarks.common.targets import Row

_ANSWER_LIMIT_S = 60.0

# Each key is used once: the server caches replies for a second, and a cached one would make a figure too good.
new_key = itertools.count(1).__next__


@dataclass(frozen=True)
class Outcome:
    """A scenario's targets and measured values, notes, and every figure."""

    rows: Sequence[Row]
    notes: Sequence[str]
    figures: Mapping[str, Any] | Sequence[Any] = field(default_factory=dict)


Step = Callable[[str], None]
Scenario = Callable[[int, Step], Outcome]


@dataclass(frozen=True)
class Window:
    """The time in which all processes count. Its start is in `time.monotonic()`, which they share."""

    begin: float
    seconds: float

    @classmethod
    def after(cls, warm_up_s: float, seconds: float) -> "Window":
        return cls(time.monotonic() + warm_up_s, seconds)

    def asked(self) -> dict[str, float]:
        return {"begin": self.begin, "seconds": self.seconds}


@contextmanager
def server(module: str = "benchmarks.race.ours", *arguments: str) -> Iterator[tuple[str, int]]:
    """Address and process id of a server in its own process; by default mixserve with default settings."""
    if module == "benchmarks.race.ours":
        arguments = arguments or ("tcp",)
    with Child("benchmarks.common.server", module, *arguments) as child:
        yield child.answer(_ANSWER_LIMIT_S), child.pid


@contextmanager
def children(count: int, module: str, *arguments: str) -> Iterator[list[Child]]:
    """Processes that answer with the module's function."""
    with ExitStack() as stack:
        yield [stack.enter_context(Child("benchmarks.common.child", module, *arguments)) for _ in range(count)]


def ask(asked: Sequence[Child], messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Send all messages at once, then wait for all answers. Raises ChildFailed."""
    for child, message in zip(asked, messages, strict=True):
        child.tell(message)
    return [child.answer(_ANSWER_LIMIT_S) for child in asked]
