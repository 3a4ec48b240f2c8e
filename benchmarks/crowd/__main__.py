"""`python -m benchmarks.crowd`, from the root of a clone; `--help` shows the options."""

import argparse
import sys
from pathlib import Path

from benchmarks.common import work
from benchmarks.common.children import ChildFailed
from benchmarks.common.progress import progress_bar
from benchmarks.crowd import alone, at_once, many, memory, report, resume, stalled
from benchmarks.crowd.scenario import Outcome, Scenario

_RESULTS = work.ROOT / "benchmarks" / "results"
_SCENARIOS: dict[str, Scenario] = {
    "alone": alone.run,
    "resume": resume.run,
    "at-once": at_once.run,
    "many": many.run,
    "stalled": stalled.run,
    "memory": memory.run,
}


def main() -> None:
    options = parser().parse_args()
    work.write()
    outcomes, not_run = crowd(options.only or list(_SCENARIOS), options.repetitions)
    print(report.write(options.output, outcomes, not_run, options.repetitions))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.crowd", description=sys.modules["benchmarks.crowd"].__doc__
    )
    made.add_argument("--repetitions", type=int, default=5, help="of what is a ratio (%(default)s)")
    made.add_argument("--only", action="append", choices=list(_SCENARIOS), help="a scenario; may be said repeatedly")
    made.add_argument("--output", type=Path, default=_RESULTS, help="where the results go (benchmarks/results)")
    return made


def crowd(names: list[str], repetitions: int) -> tuple[dict[str, Outcome], dict[str, str]]:
    """The outcomes of the scenarios by name, and why others have none; a failed scenario does not stop the next."""
    outcomes: dict[str, Outcome] = {}
    not_run: dict[str, str] = {}
    with progress_bar() as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            try:
                outcomes[name] = _SCENARIOS[name](repetitions, lambda text: progress.update(task, description=text))
            except ChildFailed as error:
                not_run[name] = str(error)
            progress.advance(task)
    return outcomes, not_run


if __name__ == "__main__":
    main()
