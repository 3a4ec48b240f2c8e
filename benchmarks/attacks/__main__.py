"""`python -m benchmarks.attacks [NAME …]`, from the root of a clone: a table of all attacks, or of those named."""

import argparse
import json
from pathlib import Path

from benchmarks.attacks import ATTACKS
from benchmarks.attacks.common import MIB, Result, measure
from benchmarks.attacks.honest import KINDS
from benchmarks.common.machine import machine
from benchmarks.common.work import FOLDER

# A p99 that is worse is marked; one below a short step of a trainer is never.
_MOST_SLOWDOWN, _STEP_MS = 2.0, 20.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*ATTACKS, []], help=", ".join(ATTACKS))
    parser.add_argument("--alone", type=float, default=5.0, metavar="S", help="the honest reader alone, in seconds")
    parser.add_argument("--attack", type=float, default=15.0, metavar="S", help="the length of an attack")
    parser.add_argument("--rest", type=float, default=15.0, metavar="S", help="the time after which memory is back")
    parser.add_argument("--json", type=Path, help="write all figures there")
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    results = list[Result]()
    for name in given.names or ATTACKS:
        result = measure(name, alone_s=given.alone, attack_s=given.attack, rest_s=given.rest)
        results.append(result)
        print(_line(result), flush=True)
    print(f"\n{machine()}; memory: anonymous and shared pages of the server; p99: alone → beside the attack\n")
    print(_table(results))
    if given.json is not None:
        given.json.write_text(json.dumps([_figures(result) for result in results], indent=1))


def _line(result: Result) -> str:
    errors = result.beside["errors"]
    return f"{result.name}: {len(errors)} errors of the honest{'' if not errors else ', the first: ' + errors[0]}"


_COLUMNS = ("attack", "peak +MiB", "after +MiB", "CPU s/s", *(f"{kind} p99 ms" for kind in KINDS), "errors")


def _table(results: list[Result]) -> str:
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *map(_cells, results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(result: Result) -> list[str]:
    return [
        result.name,
        f"{(result.peak_bytes - result.before_bytes) / MIB:.0f}",
        f"{(result.after_bytes - result.before_bytes) / MIB:.0f}",
        f"{result.cpu_s:.2f}",
        *(_compared(result.alone["p99_ms"][kind], result.beside["p99_ms"][kind]) for kind in KINDS),
        str(len(result.beside["errors"])),
    ]


def _compared(alone_ms: float, beside_ms: float) -> str:
    return f"{alone_ms:.0f} → {beside_ms:.0f}{'' if beside_ms <= max(_STEP_MS, _MOST_SLOWDOWN * alone_ms) else ' !'}"


def _figures(result: Result) -> dict[str, object]:
    return {name: getattr(result, name) for name in Result.__dataclass_fields__}


if __name__ == "__main__":
    main()
