"""Runs all that needs an accelerator, on the device that JAX has, in five minutes. On a CPU device, a smaller dry run.

`python -m benchmarks.device`, or `make bench-device`, which also sets up JAX for NVIDIA GPUs where there is one. The
results go to benchmarks/results/device.md and device.json; those of a CPU device are only printed unless `--results`
says where to, since they say nothing about accelerators.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.device import equality, placement, put
from benchmarks.device.table import Table
from benchmarks.measure import RESULTS, machine


def main() -> None:
    found = jax.devices()[0]
    is_dry = found.platform == "cpu"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("placement", "equality", "put"), help="only these")
    parser.add_argument("--positions", type=int, default=500_000 if is_dry else 10_000_000, help="to compare")
    parser.add_argument("--records", type=int, default=4096 if is_dry else 16_384, help="per source, of 8 KiB")
    parser.add_argument("--rounds", type=int, default=7 if is_dry else 21)
    parser.add_argument("--results", type=Path, default=None if is_dry else RESULTS, help="a folder")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], Table]] = {
        "placement": lambda: placement.measure(arguments.records, arguments.rounds),
        "equality": lambda: equality.measure(arguments.positions),
        "put": lambda: put.measure(arguments.rounds),
    }
    tables, seconds = {}, {}
    for name in arguments.parts or parts:
        began = time.perf_counter()
        tables[name] = parts[name]()
        seconds[name] = time.perf_counter() - began
        print(tables[name].markdown(), flush=True)  # at once: what is measured stays if a later part fails
    took = ", ".join(f"{name} {taken:.0f} s" for name, taken in seconds.items())
    note = f"on {found.platform} ({found.device_kind}), {machine()}; it took: {took}"
    print(f"- {note}")
    if arguments.results is not None:
        _write(arguments.results, tables, note)


def _write(folder: Path, tables: dict[str, Table], note: str) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    text = "\n".join(["# Devices", "", *(table.markdown() for table in tables.values()), f"- {note}", ""])
    (folder / "device.md").write_text(text)
    plain = {name: {"rows": table.rows, "notes": table.notes} for name, table in tables.items()}
    (folder / "device.json").write_text(json.dumps({"machine": note, **plain}, indent=1) + "\n")


if __name__ == "__main__":
    main()
