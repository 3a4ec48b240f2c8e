"""Eight connections with calls and a stream under way, whose client answers nothing more, pings neither."""

import time

from benchmarks.attacks.raw import GET_BATCH_AT, STREAM_BATCHES, RawConnection, batch_request, stream_request

_CONNECTIONS, _CALLS = 8, 4
_ROWS = 256


def attack(address: str) -> None:
    """Vanish without a word, and come back as another client once the server has ended a connection."""
    opened = list[RawConnection]()
    while True:
        opened = [one for one in opened if one.is_open]
        while len(opened) < _CONNECTIONS:
            connection = RawConnection(address, is_polite=False)
            connection.call(STREAM_BATCHES, stream_request(_ROWS, 100))
            for call in range(_CALLS):
                connection.call(GET_BATCH_AT, batch_request(call, _ROWS))
            opened.append(connection)
        time.sleep(0.5)
