"""`python -m benchmarks.fleet`, from the root of a clone; `--help` shows the options."""

import argparse
import json
import sys
from typing import Any

from benchmarks.common import work
from benchmarks.common.machine import machine
from benchmarks.common.progress import progress_bar
from benchmarks.common.usage import others_share
from benchmarks.fleet import chart, page
from benchmarks.fleet.calibrating import calibrate
from benchmarks.fleet.check import CASES, P99_WITHIN, RATE_WITHIN, Checked, check
from benchmarks.fleet.service_times import PATH, ServiceTimes
from benchmarks.fleet.study import study

_PICTURE = page.PAGE.with_name("scaling.png")


def main() -> None:
    options = parser().parse_args()
    work.FOLDER.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        task = progress.add_task("", total=None)

        def step(text: str) -> None:
            progress.update(task, description=text)
            progress.advance(task)

        if options.paper:
            times = ServiceTimes.load()
            checked = json.loads(page.RESULTS.read_text())["check"]
        else:
            step("what a reply costs here")
            with others_share() as others:
                times = calibrate()
            checked = _check(times, step)
        if not options.check:
            if not options.paper:
                times.save(PATH, {"machine": machine(), "other_processes": round(others(), 2)})
            results = {"check": checked, **study(times, step)}
            page.RESULTS.write_text(_json(results))
            page.fill(page.PAGE, page.tables(json.loads(page.RESULTS.read_text()), times))
            chart.draw(_PICTURE, results["load"], results["replicas"])
    if options.check and not all(row["is_met"] for row in checked):
        sys.exit(f"the simulation is off by more than {RATE_WITHIN:.0%}, or by a factor of {P99_WITHIN} in p99")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet", description=sys.modules["benchmarks.fleet"].__doc__
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument(
        "--check",
        action="store_true",
        help="only measure and compare, and write nothing; fails if they differ by too much",
    )
    which.add_argument("--paper", action="store_true", help="only simulate, with the service times that are there")
    return made


def _check(times: ServiceTimes, step: Any) -> list[dict[str, Any]]:
    found = list[dict[str, Any]]()
    for case in CASES:
        step(f"check: {case.replicas} replicas, {case.kind}")
        with others_share() as others:
            checked = check(case, times)
        found.append({**checked.plain(), "other_processes": round(others(), 2)})
        print(_line(checked), f"; other processes had {others():.0%} of the cores", sep="")
    return found


def _line(checked: Checked) -> str:
    case = checked.case
    return (
        f"{case.kind}, {case.replicas} replicas: {checked.measured_rate:.1f} batches/s, "
        f"simulated {checked.simulated_rate:.1f} ({checked.rate_ratio:.2f}); "
        f"p99 {checked.measured_p99_s * 1e3:.1f} ms, simulated "
        f"{checked.simulated_p99_s * 1e3:.1f} ({checked.p99_ratio:.2f}){'' if checked.is_met else ': MISSED'}"
    )


def _json(results: dict[str, Any]) -> str:
    """With a row in each line."""
    parts = [f" {json.dumps(name)}: [\n  " + ",\n  ".join(map(_row, rows)) + "\n ]" for name, rows in results.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _row(row: Any) -> str:
    return json.dumps(json.loads(json.dumps(row), parse_float=lambda text: float(f"{float(text):.5g}")))


if __name__ == "__main__":
    main()
