"""Ports that a test gives to a server."""

import os
import random
import socket
from contextlib import ExitStack

# Below the ports that Linux and macOS give to whoever asks for any: a port of those may be taken by another test's
# connection between this look and the server's start.
LOWEST, PORTS_OF_A_PROCESS = 16_000, 800
PROCESSES = 20


def free_ports(count: int = 1, host: str = "127.0.0.1") -> int:
    """The first of `count` adjacent ports of `host` that are free, and which nobody gets who asks for any port.

    Each of pytest's processes draws from ports of its own.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
    first = LOWEST + process * PORTS_OF_A_PROCESS
    for port in random.sample(range(first, first + PORTS_OF_A_PROCESS - count), PORTS_OF_A_PROCESS // 2):
        with ExitStack() as bound:
            try:
                for number in range(port, port + count):
                    _bind(bound, host, number)
            except OSError:
                continue
            return port
    raise OSError(f"found no {count} free ports from {first} on")


def _bind(bound: ExitStack, host: str, port: int) -> None:
    made = bound.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((host, port))
    made.listen()
