"""100 calls of each kind, over each of four connections, that never send their request."""

import time

from benchmarks.attacks.raw import RawConnection
from mixserve_client.wire import methods

_CONNECTIONS, _CALLS = 4, 100
_METHODS = (methods.GET_BATCH_AT, methods.STREAM_BATCHES, methods.CALL_SESSION, methods.OPEN_SESSION)


def attack(address: str) -> None:
    """Open them, and others in place of those that the server ends."""
    keep_calling(address, _METHODS, None, _CONNECTIONS, _CALLS)


def keep_calling(
    address: str,
    methods: tuple[str, ...],
    request: bytes | None,
    connections: int,
    calls: int,
    window: int = 1 << 16,
    pause_s: float = 0.05,
) -> None:
    """Keep `calls` calls of each method under way over each connection."""
    opened = list[RawConnection]()
    while True:
        opened = [one for one in opened if one.is_open]
        opened += [RawConnection(address, window=window) for _ in range(connections - len(opened))]
        for connection in opened:
            missing = calls * len(methods) - connection.calls_under_way()
            try:
                for call in range(missing):
                    connection.call(methods[call % len(methods)], request)
            except OSError:
                continue
        time.sleep(pause_s)
