"""Stands in for Slurm's commands: each "node" is an address of this machine's loopback, named so.

`python stand_in.py srun OPTIONS COMMAND …` starts processes with the variables that Slurm gives to tasks, and ends as
`srun` does: at SIGTERM it kills them, as Slurm 22.05 did. `scancel --signal=TERM JOB.STEP` signals all processes of a
step, and `scontrol show hostnames LIST` prints the names of a list. Options that are not known here are errors.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path


def srun(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--gres")
    parser.add_argument("--kill-on-bad-exit", type=int, choices=(0, 1))
    parser.add_argument("--nodes", type=int)
    parser.add_argument("--ntasks", type=int)
    parser.add_argument("--ntasks-per-node", type=int)
    parser.add_argument("--nodelist", type=lambda text: text.split(","))
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    assert len(given.nodelist) == given.nodes, given
    assert given.ntasks == given.nodes * given.ntasks_per_node, given
    step = make_step()
    tasks = [
        subprocess.Popen(
            given.command,
            start_new_session=True,  # so that its processes have a group of their own
            env=os.environ
            | {
                "SLURMD_NODENAME": node,
                "SLURM_STEP_ID": step.name,
                "SLURM_NODEID": str(number),
                "SLURM_LOCALID": str(local),
                "SLURM_PROCID": str(number * given.ntasks_per_node + local),
                "SLURM_NTASKS": str(given.ntasks),
            },
        )
        for number, node in enumerate(given.nodelist)
        for local in range(given.ntasks_per_node)
    ]
    (step / "groups").write_text(" ".join(str(task.pid) for task in tasks))

    def kill(*_: object) -> None:
        signal_groups([task.pid for task in tasks], signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill)
    while any(task.poll() is None for task in tasks):
        if given.kill_on_bad_exit and any(task.poll() for task in tasks):
            kill()
        time.sleep(0.05)
    return max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)


def make_step() -> Path:
    """A folder of the next step, with its number as its name."""
    for number in count():
        with suppress(FileExistsError):
            step = Path(os.environ["STAND_IN_STEPS"]) / str(number)
            step.mkdir(parents=True)
            return step
    raise AssertionError


def signal_groups(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


def scancel(arguments: list[str]) -> int:
    option, what = arguments
    assert option == "--signal=TERM", arguments
    job, step = what.split(".")
    assert job == os.environ["SLURM_JOB_ID"], arguments
    groups = Path(os.environ["STAND_IN_STEPS"], step, "groups").read_text().split()
    signal_groups(map(int, groups), signal.SIGTERM)
    return 0


def scontrol(arguments: list[str]) -> int:
    assert arguments[:2] == ["show", "hostnames"], arguments
    prefix, _, numbers = arguments[2].removesuffix("]").partition("[")
    first, last = map(int, numbers.split("-"))
    print("\n".join(f"{prefix}{number}" for number in range(first, last + 1)))
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "scancel": scancel, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
