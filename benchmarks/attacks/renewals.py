"""RenewSessions and ReleaseSessions with a thousand names of sessions that the client does not hold, on two threads."""

import threading
from itertools import count

import grpc

from mixserve_client.schema.sessions import HeldSession
from mixserve_client.wire import methods
from mixserve_client.wire.session import encode_held

_MIXTURE, _NAMES = "train", 1000


def attack(address: str) -> None:
    """Renew what nobody has opened, and what others hold, for ever."""
    numbers = count()

    def renew() -> None:
        with grpc.insecure_channel(address) as channel:
            calls = [channel.unary_unary(path) for path in (methods.RENEW_SESSIONS, methods.RELEASE_SESSIONS)]
            while True:
                at = next(numbers)
                held = encode_held(
                    HeldSession(_MIXTURE, f"none-{at}-{name}", f"{at * _NAMES + name:032x}") for name in range(_NAMES)
                )
                try:
                    calls[at % 2](held, timeout=30)
                except grpc.RpcError:
                    continue

    threads = [threading.Thread(target=renew) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
