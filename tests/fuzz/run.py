"""`python -m tests.fuzz.run`: fuzz all decoders, each in a process of its own, and print what came of it.

MIXSERVE_FUZZ_INPUTS is how many inputs they get together. With `.venv-fuzz`, which `make fuzz` sets up, atheris guides
them by coverage. MIXSERVE_FUZZ_TARGETS names some targets, separated by commas, by parts of their names.
"""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.fuzz.file_targets import FILES
from tests.fuzz.folders import VARIABLE, memory_folder
from tests.fuzz.target import Target
from tests.fuzz.wire_targets import WIRE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "fuzz"
GUIDED = ROOT / ".venv-fuzz" / "bin" / "python"
INPUTS = int(os.environ.get("MIXSERVE_FUZZ_INPUTS") or 5_000_000)
_LONGEST_S = 3600
_PROCESSES = int(os.environ.get("MIXSERVE_FUZZ_PROCESSES") or 2)


def has_atheris(python: Path) -> bool:
    return python.exists() and subprocess.run([python, "-c", "import atheris"], capture_output=True).returncode == 0


def fuzz(python: str, target: Target, inputs: int) -> tuple[Target, dict[str, Any] | None, str]:
    """What was counted, None after a fault; and what it printed."""
    corpus = FOLDER / target.name.replace(": ", "-").replace(" ", "-")
    command = [python, "-m", "tests.fuzz.guided", target.name, str(inputs), str(corpus)]
    folder = memory_folder()
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}",
        "JAX_PLATFORMS": "cpu",
        VARIABLE: str(folder),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=_LONGEST_S
    )
    shutil.rmtree(folder)
    said = done.stderr[-1000:] + done.stdout
    last = next((line for line in reversed(done.stdout.splitlines()) if line.startswith(f"{target.name}\t")), None)
    return target, None if done.returncode or last is None else json.loads(last.split("\t")[1]), said


def main() -> None:
    python = str(GUIDED) if has_atheris(GUIDED) else sys.executable
    if python == sys.executable:
        print(
            "SKIPPED: coverage guides nothing, since atheris is not in .venv-fuzz (it has wheels for Linux on x86_64)"
        )
    named = [part for part in os.environ.get("MIXSERVE_FUZZ_TARGETS", "").split(",") if part]
    targets = [one for one in (*WIRE, *FILES) if not named or any(part in one.name for part in named)]
    whole = sum(one.share for one in targets)
    failed, total = list[str](), 0
    with ThreadPoolExecutor(_PROCESSES) as threads:
        running = [
            threads.submit(fuzz, python, one, max(1000, int(INPUTS * one.share / whole)))
            for one in sorted(targets, key=lambda one: one.share)
        ]
        for done in running:
            target, found, said = done.result()
            if found is None:
                failed.append(target.name)
                print(f"{target.name:34} FAULT\n{said[-4000:]}", flush=True)
                continue
            total += found["inputs"]
            print(
                f"{target.name:34} {found['inputs']:9,} inputs in {found['seconds']:5.0f} s, "
                f"{100 * found['refused'] / found['inputs']:3.0f} % refused, slowest {found['slowest_ms']:6.1f} ms, "
                f"{'guided' if found['guided'] else 'by mutation'}",
                flush=True,
            )
    print(f"{total:,} inputs of {len(targets)} decoders; faults in {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
