"""Where the command begins: what a signal does before anything else is loaded, and then the command itself."""

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    os._exit(0)  # nothing has begun that could be finished


# A server may be told to stop at any time, and loading takes seconds. As PID 1 of a container a process without
# handlers would not hear SIGTERM meanwhile; elsewhere it would end with -15, as if it had failed.
if sys.argv[1:2] == ["serve"]:
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, _end)

from mixserve.cli.main import app  # noqa: E402


def main() -> None:
    """The command `mixserve`."""
    app(prog_name="mixserve")
