"""`python -m benchmarks.race`, from the root of a clone; `--help` shows the options."""

import argparse
import sys
from pathlib import Path

from benchmarks.common import work
from benchmarks.common.machine import machine
from benchmarks.race import report
from benchmarks.race.driver import race
from benchmarks.race.roster import ROSTER

_AT_LEAST = 2
_RESULTS = work.ROOT / "benchmarks" / "results"


def main() -> None:
    options = parser().parse_args()
    if unknown := set(options.only) - {entry.name for entry in ROSTER}:
        sys.exit(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(e.name for e in ROSTER)}")
    entries = [entry for entry in ROSTER if not options.only or entry.name in options.only]
    work.write()
    results = race(entries, options.sizes, options.rounds, {"seconds": options.seconds, "at_least": _AT_LEAST})
    settings = {"rounds": options.rounds, "seconds": options.seconds, "at_least": _AT_LEAST}
    context = {"machine": machine(), "settings": settings, "sizes": options.sizes}
    names = [entry.name for entry in entries if entry.name not in results["not_run"]]
    print(report.write(options.output, {**context, "names": names, **results}))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.race", description=sys.modules["benchmarks.race"].__doc__)
    made.add_argument("--rounds", type=int, default=5, help="rounds at every size (%(default)s)")
    made.add_argument("--seconds", type=float, default=0.4, help="how long a round is timed (%(default)s)")
    made.add_argument("--sizes", type=_numbers, default=work.SIZES, help="batch sizes, with commas")
    made.add_argument("--only", type=_names, default=[], help="names of contestants, with semicolons")
    made.add_argument("--output", type=Path, default=_RESULTS, help="where the results go (benchmarks/results)")
    return made


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(";")]


if __name__ == "__main__":
    main()
