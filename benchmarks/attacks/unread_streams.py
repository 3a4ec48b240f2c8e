"""300 streams of one connection, and 48 of each of three others, whose replies are never taken."""

import time

from benchmarks.attacks.raw import STREAM_BATCHES, RawConnection, stream_request

_STREAMS = (300, 48, 48, 48)
_ROWS, _COUNT = 64, 1000


def attack(address: str) -> None:
    """Keep that many streams open, whatever the server ends."""
    connections = [RawConnection(address) for _ in _STREAMS]
    running = [0 for _ in _STREAMS]
    while True:
        for at, most in enumerate(_STREAMS):
            if not connections[at].is_open:
                connections[at], running[at] = RawConnection(address), 0
            connection = connections[at]
            ended, connection.ended = connection.ended, 0
            running[at] -= ended
            try:
                while running[at] < most:
                    connection.call(STREAM_BATCHES, stream_request(_ROWS, _COUNT))
                    running[at] += 1
            except OSError:
                continue
        time.sleep(0.2)
