"""Lines of JSON between processes; whoever is started ends when the one who started it does."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, TextIO

from benchmarks.common.work import ROOT


def claimed_stdout() -> TextIO:
    """The process's stdout for lines of JSON alone: what libraries print goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def send(stream: TextIO, message: Any) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


@dataclass(frozen=True)
class Server:
    """A server in a process of its own; dropping it ends the process."""

    process: subprocess.Popen[str]
    address: str


def start_server(module: str, *arguments: str) -> Server:
    """Run `serve(*arguments)` of the module in a process of its own, until this one ends.

    Raises RuntimeError where it ends before it has an address.
    """
    command = [sys.executable, "-m", "benchmarks.common.server", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the server of {module} ended with {process.wait()} before it served")
    return Server(process, json.loads(line))
