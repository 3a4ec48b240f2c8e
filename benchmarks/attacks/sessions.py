"""Sessions that are opened and closed, or left, until there are as many as a server keeps; and lists of them."""

import threading
from itertools import count

import grpc

from mixserve_client.schema.sessions import HeldSession, OpenRequest
from mixserve_client.wire import methods
from mixserve_client.wire.session import encode_held, encode_list_request, encode_open_request

_MIXTURE = "train"


def attack(address: str) -> None:
    """Open sessions as fast as the server lets them, close every second one, and list them all."""
    numbers = count()

    def open_some() -> None:
        with grpc.insecure_channel(address) as channel:
            open_one, release = (channel.unary_unary(path) for path in (methods.OPEN_SESSION, methods.RELEASE_SESSIONS))
            while True:
                at = next(numbers)
                held = HeldSession(_MIXTURE, f"attack-{at}", f"{at:032x}")
                try:
                    open_one(encode_open_request(OpenRequest(*held)), timeout=30)
                    if at % 2:
                        release(encode_held([held]), timeout=30)
                except grpc.RpcError:
                    continue

    def list_all() -> None:
        with grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
            call = channel.unary_unary(methods.LIST_SESSIONS)
            while True:
                try:
                    call(encode_list_request(""), timeout=60)
                except grpc.RpcError:
                    continue

    threads = [threading.Thread(target=task) for task in (*[open_some] * 4, *[list_all] * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
