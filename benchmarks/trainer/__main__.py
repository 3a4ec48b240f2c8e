"""`python -m benchmarks.trainer`, from the root of a clone; `--help` shows the options."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.common import work
from benchmarks.common.children import ChildFailed
from benchmarks.common.machine import machine
from benchmarks.trainer import report
from benchmarks.trainer.driver import Plan, train
from benchmarks.trainer.roster import ROSTER, TF_SERVICE_TUNED

_FULL = Plan(sizes=(128, 1024), steps_ms=(20, 50, 100), rounds=5, seconds=1.2, warm_up_s=0.4)
_QUICK = Plan(sizes=(128,), steps_ms=(20,), rounds=1, seconds=0.2, warm_up_s=0.05)
_QUICK_ROSTER = [entry for entry in ROSTER if entry.name != TF_SERVICE_TUNED]  # starts slowly
_RESULTS, _QUICK_RESULTS = work.ROOT / "benchmarks" / "results", work.FOLDER / "quick"


def main() -> None:
    options = parser().parse_args()
    full = (_FULL, ROSTER, _RESULTS)
    plan, entries, folder = (_QUICK, _QUICK_ROSTER, _QUICK_RESULTS) if options.quick else full
    plan = replace(plan, rounds=options.rounds or plan.rounds, seconds=options.seconds or plan.seconds)
    work.write()
    try:
        found = train(entries, plan)
    except ChildFailed as error:
        sys.exit(str(error))
    names = [entry.name for entry in entries if entry.name not in found["not_run"]]
    settings = {"rounds": plan.rounds, "seconds": plan.seconds, "warm_up_s": plan.warm_up_s}
    context = {"machine": machine(), "settings": settings, "sizes": plan.sizes, "steps_ms": plan.steps_ms}
    print(report.write(options.output or folder, {**context, "names": names, **found}))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.trainer", description=sys.modules["benchmarks.trainer"].__doc__
    )
    made.add_argument(
        "--quick", action="store_true", help="see whether it runs, in half a minute: one size, step and round"
    )
    made.add_argument("--rounds", type=int, help=f"rounds of every cell ({_FULL.rounds})")
    made.add_argument("--seconds", type=float, help=f"how long a round is timed ({_FULL.seconds})")
    made.add_argument("--output", type=Path, help="where the results go (benchmarks/results; build/benchmarks/quick)")
    return made


if __name__ == "__main__":
    main()
