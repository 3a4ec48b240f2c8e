"""The entry point: sets signal handlers before anything else is imported, then runs the command."""

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    os._exit(0)  # no calls to finish yet


def _go_on(number: int, frame: FrameType | None) -> None:
    pass  # SIGHUP: nothing has been read yet that could be read again


# A server may be stopped at any time, and imports take seconds. Meanwhile, without handlers, PID 1 of a container would
# ignore SIGTERM, and any other process would end with -15, as if it had failed.
if sys.argv[1:2] == ["serve"]:
    signal.signal(signal.SIGHUP, _go_on)
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, _end)
    # gRPC looks when it is imported. At its default it writes a line of its own, which nothing limits, for each TLS
    # handshake that a stranger breaks off.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from mixserve.cli.main import app  # noqa: E402
from mixserve_client.redaction import has_token  # noqa: E402


def main() -> None:
    """The command `mixserve`."""
    # Typer's errors would show it, in pieces.
    if any(map(has_token, sys.argv[1:])):
        print(
            "mixserve: a token is among the arguments of the command, where every user of this machine can read it: "
            "put it into a file for --token-file, or into MIXSERVE_TOKEN, and make another one in its place",
            file=sys.stderr,
        )
        raise SystemExit(2)
    app(prog_name="mixserve")
