"""Runs `mixserve autoscale`."""

import signal
import threading
from collections.abc import Callable, Sequence
from datetime import datetime

from mixserve.autoscaling import Policy, Seen, autoscale, observe_by, scale_by_command
from mixserve.cli.connecting import Connection
from mixserve_client import MixClient
from mixserve_client.errors import InvalidRequest


def run(
    addresses: Sequence[str],
    connection: Connection,
    policy: Policy,
    *,
    every_s: float,
    command: str | None,
    dry_run: bool,
) -> None:
    """Watch these servers, and scale them, until the user ends it. Raises MixserveError."""
    if dry_run == (command is not None):
        raise InvalidRequest("give either --dry-run, or --run COMMAND with the place {replicas} for their number")
    scale = None if command is None else scale_by_command(command)
    with MixClient.connect(list(addresses), **connection.credentials()) as client:
        follow(policy, observe_by(client), scale, every_s)


def follow(
    policy: Policy, observe: Callable[[], tuple[int, Seen]], scale: Callable[[int], None] | None, every_s: float
) -> None:
    """As `mixserve.autoscaling.autoscale`, until a signal; prints lines with the time."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    autoscale(policy, observe, scale, ended, every_s=every_s, say=_say)


def _say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S}  {text}", flush=True)
