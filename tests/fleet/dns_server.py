"""A small DNS server: names in IPv4, whose addresses a test changes."""

import socket
import struct
import threading

_TYPE_A, _CLASS_IN = 1, 1
_ANSWER, _NO_SUCH_NAME, _FAILURE = 0x8180, 3, 2


class DnsServer:
    """Answers for `addresses`, by name, at port 53 of 127.0.0.1; with `fails`, that it cannot."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.fails = False
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, peer = self._socket.recvfrom(4096)
            self._socket.sendto(self._answer(query), peer)

    def _answer(self, query: bytes) -> bytes:
        labels, at = list[str](), 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode())
            at += 1 + length
        kind = int.from_bytes(query[at + 1 : at + 3])
        question, known = query[12 : at + 5], self.addresses.get(".".join(labels).lower())
        self.asked += kind == _TYPE_A
        hosts = known if known is not None and kind == _TYPE_A else []
        code = _FAILURE if self.fails else _NO_SUCH_NAME if known is None else 0
        if code:
            hosts = []
        answers = b"".join(
            struct.pack(">HHHIH", 0xC00C, _TYPE_A, _CLASS_IN, 0, 4) + socket.inet_aton(host) for host in hosts
        )
        return query[:2] + struct.pack(">HHHHH", _ANSWER | code, 1, len(hosts), 0, 0) + question + answers
