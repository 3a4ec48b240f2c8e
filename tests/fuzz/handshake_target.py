"""The client's side of shared memory: what a process at the other end of the socket may answer."""

import os
import socket
import threading
import time
from contextlib import closing, suppress
from functools import cache

from mixserve_client.transport.handshake import SLOT_ID, SLOT_PACKET
from mixserve_client.transport.slots import SlotPool
from tests.fuzz.folders import memory_folder
from tests.fuzz.target import Target

_SLOT_BYTES = 4096
_LONGEST_S = 5.0


class _Server:
    """Answers each packet with the next of `answers`, and ends the connection after the last."""

    def __init__(self) -> None:
        self.folder = memory_folder()
        (self.folder / "own").mkdir(mode=0o700)
        self.path = self.folder / "own" / "s.sock"
        self.answers = list[bytes]()
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(self.path))
        self._listening.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            made, _ = self._listening.accept()
            with closing(made), suppress(OSError):
                for answer in self.answers:
                    _, descriptors, _, _ = socket.recv_fds(made, SLOT_PACKET.size, 4)
                    for one in descriptors:
                        os.close(one)
                    made.send(answer)


_server = cache(_Server)


def _shake_hands(data: bytes) -> None:
    """The first byte is the length of the first answer; the second one has the rest."""
    size = data[0] if data else 0
    _server().answers = [data[1 : 1 + size], data[1 + size :][:60_000]]
    until = time.monotonic() + _LONGEST_S
    pool = SlotPool(str(_server().path), str(_server().folder), until)
    try:
        for slot in pool.take(1, _SLOT_BYTES, until):
            pool.release(slot)
        pool.is_alive(until)
        with suppress(OSError):
            pool.open_channel(until).close()
    finally:
        pool.close()
    assert time.monotonic() < until, "it waited for too long"


def _seeds() -> list[bytes]:
    right, refused = SLOT_ID.pack(7), SLOT_ID.pack(0) + b"no room"
    return [bytes([len(first)]) + first + second for first in (right, refused) for second in (right, refused)]


HANDSHAKE = Target("client: handshake of shared memory", _shake_hands, (OSError,), _seeds, share=0.1)
