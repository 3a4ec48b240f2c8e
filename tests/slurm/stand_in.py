"""Stands in for Slurm's commands: each "node" is an address of this machine's loopback, named so.

`python stand_in.py srun OPTIONS COMMAND …` starts processes with the variables that Slurm gives to tasks, passes
SIGTERM on to them, and ends as `srun` does; `scontrol show hostnames LIST` prints the names of a list. Options that are
not known here are errors.
"""

import argparse
import os
import signal
import subprocess
import sys
import time


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
    tasks = [
        subprocess.Popen(
            given.command,
            env=os.environ
            | {
                "SLURMD_NODENAME": node,
                "SLURM_NODEID": str(number),
                "SLURM_LOCALID": str(local),
                "SLURM_PROCID": str(number * given.ntasks_per_node + local),
                "SLURM_NTASKS": str(given.ntasks),
            },
        )
        for number, node in enumerate(given.nodelist)
        for local in range(given.ntasks_per_node)
    ]

    def pass_on(*_: object) -> None:
        for task in tasks:
            if task.poll() is None:
                task.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    while any(task.poll() is None for task in tasks):
        if given.kill_on_bad_exit and any(task.poll() for task in tasks):
            pass_on()
        time.sleep(0.05)
    return max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)


def scontrol(arguments: list[str]) -> int:
    assert arguments[:2] == ["show", "hostnames"], arguments
    prefix, _, numbers = arguments[2].removesuffix("]").partition("[")
    first, last = map(int, numbers.split("-"))
    print("\n".join(f"{prefix}{number}" for number in range(first, last + 1)))
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
