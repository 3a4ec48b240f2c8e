"""Ports that a test gives to a server."""

import random
import socket
from contextlib import ExitStack

# Below the ports that Linux and macOS give to whoever asks for any: a port of those may be taken by another test's
# connection between this look and the server's start. So many that other processes of tests hardly choose the same.
_LOWEST, _END = 16_000, 32_000
_TRIES = 1000
_given = set[int]()


def free_ports(count: int = 1, host: str = "127.0.0.1") -> int:
    """The first of `count` adjacent ports of `host` that are free; nobody gets them who asks for any port."""
    choice = random.SystemRandom()
    for _ in range(_TRIES):
        first = choice.randrange(_LOWEST, _END - count)
        ports = range(first, first + count)
        with ExitStack() as bound:
            try:
                for port in ports:
                    _bind(bound, host, port)
            except OSError:
                continue
        if _given.isdisjoint(ports):
            _given.update(ports)
            return first
    raise OSError(f"found no {count} free ports in {_TRIES} tries")


def _bind(bound: ExitStack, host: str, port: int) -> None:
    made = bound.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((host, port))
    made.listen()
