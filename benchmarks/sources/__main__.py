"""Every kind of data, read by mixserve, by the format's own loader and by grain: `python -m benchmarks.sources`.

Reads the same records of the same files in the same order, in turn, in processes of their own. Writes
benchmarks/results/sources.{json,md}.
"""

import argparse
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.common.children import Child, ChildFailed
from benchmarks.common.work import FOLDER
from benchmarks.measure import machine
from benchmarks.sources.data import write
from benchmarks.sources.report import markdown
from benchmarks.sources.roster import KINDS, Kind

_RESULTS = Path(__file__).parents[1] / "results"
_LIMIT_S = 120.0


def main() -> None:
    arguments = _arguments()
    chosen = [kind for kind in KINDS if not arguments.kinds or any(kind.name.startswith(k) for k in arguments.kinds)]
    results: dict[str, Any] = {
        "machine": machine(),
        "seconds": arguments.seconds,
        "rounds_count": arguments.rounds,
        "rounds": [],
        "not_run": {},
    }
    for kind in track(chosen, "kinds"):
        folder = FOLDER / "sources" / kind.data
        write(kind.data, folder)
        rounds, not_run = _race(kind, folder, arguments.rounds, arguments.seconds)
        results["rounds"] += rounds
        if not_run:
            results["not_run"][kind.name] = not_run
    text = markdown(results)
    print(text)
    if not arguments.kinds:
        (_RESULTS / "sources.json").write_text(json.dumps(results, indent=1) + "\n")
        (_RESULTS / "sources.md").write_text(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sources", description=__doc__)
    parser.add_argument("kinds", nargs="*", help="the first letters of kinds; by default all, and results are written")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of every contestant in every round")
    return parser.parse_args()


def _race(kind: Kind, folder: Path, rounds: int, seconds: float) -> tuple[list[dict[str, Any]], Mapping[str, str]]:
    """The figures of all rounds, and why some do not run. The first round warms up, and does not count.

    Raises ValueError if two readers read other records.
    """
    figures: list[dict[str, Any]] = []
    not_run: dict[str, str] = {}
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        for entry in kind.entries:
            arguments = ("benchmarks.sources.contestant", entry.reader, str(folder))
            try:
                children[entry.name] = stack.enter_context(
                    Child("benchmarks.common.child", *arguments, python=entry.python())
                )
            except FileNotFoundError as error:
                not_run[entry.name] = str(error)
        for number in range(rounds + 1):
            digests: dict[str, str] = {}
            for entry in kind.entries:
                if entry.name not in children:
                    continue
                try:
                    children[entry.name].tell({"number": number, "seconds": seconds})
                    answer = children[entry.name].answer(_LIMIT_S)
                except ChildFailed as error:
                    not_run[entry.name] = str(error)
                    children.pop(entry.name)
                    continue
                if not entry.in_order:
                    digests[entry.name] = answer["digest"]
                if number:
                    figures.append({"kind": kind.name, "name": entry.name, "round": number, **answer})
            if len(set(digests.values())) > 1:
                raise ValueError(f"{kind.name}: not all read the same records: {digests}")
    return figures, not_run


if __name__ == "__main__":
    main()
