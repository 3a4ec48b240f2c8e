"""A command of the user's that scales replicas."""

import shlex
import subprocess
from collections.abc import Callable

from mixserve_client.errors import InvalidRequest, Unavailable

_PLACE = "{replicas}"
_TIMEOUT_S = 120.0


def scale_by_command(command: str, timeout_s: float = _TIMEOUT_S) -> Callable[[int], None]:
    """Runs `command` with the number in place of `{replicas}`, without a shell; what it prints is not shown.

    Raises InvalidRequest for a command without that place. The function that is returned raises Unavailable with what
    the command printed, if that does not end with 0 within `timeout_s` seconds.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InvalidRequest(f"the command {command!r} cannot be split into words: {error}") from error
    if not any(_PLACE in word for word in words):
        raise InvalidRequest(f"the command must have the place {_PLACE} for the number of replicas, got {command!r}")

    def scale(replicas: int) -> None:
        _run([word.replace(_PLACE, str(replicas)) for word in words], timeout_s)

    return scale


def _run(words: list[str], timeout_s: float) -> None:
    said = shlex.join(words)
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout_s
        )
    except OSError as error:
        raise Unavailable(f"{said} cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{said} has not ended after {timeout_s:.0f} s, and was killed") from error
    if done.returncode:
        printed = done.stdout.decode(errors="replace").strip()
        raise Unavailable(f"{said} ended with {done.returncode}: {printed or 'it printed nothing'}")
