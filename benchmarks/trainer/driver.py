"""The driver: starts the trainers, calibrates the step, runs all rounds in turn, and collects the answers."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common.children import Child, ChildFailed
from benchmarks.common.progress import progress_bar
from benchmarks.race.roster import Entry
from benchmarks.trainer.roster import FLOOR, RAW

_TRAINER = "benchmarks.trainer.training"
_START_LIMIT_S = 180.0
_ANSWER_LIMIT_S = 60.0
_RATE_SECONDS = 0.5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to run: every contestant at every batch size (in records) and length of a step, in `rounds` rounds."""

    sizes: Sequence[int]
    steps_ms: Sequence[int]
    rounds: int
    seconds: float
    warm_up_s: float

    def cells(self) -> list[tuple[int, int]]:
        return list(itertools.product(self.sizes, self.steps_ms))

    def turns(self, contestants: int) -> int:
        """The steps of the progress bar: starts, calibrations, rounds, and rates of the raw stream."""
        cells = len(self.cells())
        return contestants + 1 + cells + self.rounds * (cells * contestants + len(self.sizes))


@dataclass
class Trainers:
    """The trainers' processes by name; a failed one is ended, and its reason goes to `not_run`."""

    running: dict[str, Child]
    not_run: dict[str, str] = field(default_factory=dict)

    def ask(self, name: str, question: str, limit_s: float = _ANSWER_LIMIT_S, **asked: Any) -> dict[str, Any] | None:
        """The trainer's answer; None if it has failed, now or before."""
        if name not in self.running:
            return None
        try:
            with suppress(ChildFailed):  # it has ended: its last answer says why
                self.running[name].tell({"question": question, **asked})
            return self.running[name].answer(limit_s)
        except ChildFailed as error:
            self.not_run[name] = str(error)
            self.running.pop(name).close()
            return None


def train(entries: Sequence[Entry], plan: Plan) -> dict[str, Any]:
    """All rounds, in turn: in every round, for every size and step, every contestant, A B C … A B C …

    Raises ChildFailed if the step cannot be calibrated. A contestant that fails is left out from then on.
    """
    names = [entry.name for entry in entries]
    with start_trainers([*entries, RAW]) as trainers, progress_bar() as progress:
        task = progress.add_task("", total=plan.turns(len(names)))

        def say(text: str) -> None:
            progress.update(task, description=text)
            progress.advance(task)

        versions = {name: _version(trainers, name, say) for name in [*names, RAW.name]}
        steps = [_calibrate(trainers, size, step_ms, say) for size, step_ms in plan.cells()]
        alone = {name: trainers.ask(name, "alone", **_longest(steps)) for name in names}
        rounds: list[dict[str, Any]] = []
        rates: list[dict[str, Any]] = []
        for turn in range(plan.rounds):
            for number, one in enumerate(steps):
                rounds += _round(trainers, names, plan, one, turn, turn * len(steps) + number, say)
            for size in plan.sizes:
                rates += _rates(trainers, size, turn, steps[0]["products"], say)
    return {
        "versions": _present(versions),
        "not_run": trainers.not_run,
        "steps": steps,
        "alone": _present(alone),
        "rates": rates,
        "rounds": rounds,
    }


@contextmanager
def start_trainers(entries: Sequence[Entry]) -> Iterator[Trainers]:
    """Start the trainers without waiting for them; a missing environment is a failure."""
    with ExitStack() as stack:
        trainers = Trainers({})
        for entry in entries:
            try:
                child = Child(
                    "benchmarks.common.child", _TRAINER, entry.module, *entry.arguments, python=entry.python()
                )
                stack.callback(child.close)
                trainers.running[entry.name] = child
            except OSError as error:
                trainers.not_run[entry.name] = str(error)
        yield trainers


def _version(trainers: Trainers, name: str, say: Say) -> dict[str, Any] | None:
    say(f"starting {name}")
    return trainers.ask(name, "versions", _START_LIMIT_S)


def _calibrate(trainers: Trainers, size: int, step_ms: int, say: Say) -> dict[str, Any]:
    """Calibrate on the trainer with data in memory; all trainers use the same number of products."""
    say(f"calibrating steps of {step_ms} ms")
    found = trainers.ask(FLOOR, "calibrate", size=size, seconds=step_ms / 1e3)
    if found is None:
        raise ChildFailed(f"{FLOOR}: {trainers.not_run[FLOOR]}")
    return {"batch": size, "step_ms": step_ms, **found}


def _longest(steps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    one = max(steps, key=lambda step: step["products"])
    return {"size": one["batch"], "products": one["products"]}


def _round(
    trainers: Trainers, names: Sequence[str], plan: Plan, step: Mapping[str, Any], turn: int, key: int, say: Say
) -> list[dict[str, Any]]:
    """One round of every contestant at a size and step, under the same key, which is new to all."""
    found = []
    asked = {"size": step["batch"], "products": step["products"], "key": 1000 + key}
    asked |= {"seconds": plan.seconds, "warm_up_s": plan.warm_up_s}
    for name in names:
        say(f"round {turn + 1}, {step['batch']} records, {step['step_ms']} ms, {name}")
        if taken := trainers.ask(name, "round", **asked):
            found.append({"name": name, "batch": step["batch"], "step_ms": step["step_ms"], "round": turn, **taken})
    return found


def _rates(trainers: Trainers, size: int, turn: int, products: int, say: Say) -> list[dict[str, Any]]:
    """The raw stream's rate in a loop that does nothing else, alone and beside steps."""
    say(f"round {turn + 1}, {size} records, {RAW.name}")
    found = []
    for beside in (False, True):
        asked = {"size": size, "products": products, "seconds": _RATE_SECONDS, "beside": beside}
        if answer := trainers.ask(RAW.name, "rate", **asked):
            found.append({"batch": size, "round": turn, "beside": beside, **answer})
    return found


def _present(answers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: answer for name, answer in answers.items() if answer is not None}
