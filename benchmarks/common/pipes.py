"""Lines of JSON between processes; a child ends when its parent ends, since its stdin is then closed."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, TextIO

from benchmarks.common.work import ROOT


def claimed_stdout() -> TextIO:
    """Reserve the process's stdout for lines of JSON; what libraries print goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    # On the level of file descriptors: C++ libraries such as TensorFlow print past `sys.stdout`.
    os.dup2(2, 1)
    return answers


def send(stream: TextIO, message: Any) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


@dataclass(frozen=True)
class Server:
    """A server in its own process; the process ends when this object is collected, which closes its stdin."""

    process: subprocess.Popen[str]
    address: str


def start_server(module: str, *arguments: str) -> Server:
    """Run `serve(*arguments)` of the module in its own process, until this process ends.

    Raises RuntimeError if it ends before it has an address.
    """
    command = [sys.executable, "-m", "benchmarks.common.server", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the server of {module} ended with {process.wait()} before it served")
    return Server(process, json.loads(line))
