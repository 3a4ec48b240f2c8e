"""The list of a fleet's replicas, as each of them tells it."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from mixserve_client.errors import MixserveError, Unavailable
from mixserve_client.schema.server import FleetList
from mixserve_client.transport.base import Lane, ReadMode, Replies, Transport
from mixserve_client.wire import methods
from mixserve_client.wire.server import ask_load, decode_server

_ASK_S = 2.0
_MOST_ASKED = 3  # of which each may let us wait


class ToldLookUp:
    """Asks replicas for the list, and `ask_last` if none of them answers."""

    every_s = 5.0  # a list is at hand where it is asked for, unlike a name's addresses
    fewest = 1

    def __init__(self, ask_last: Callable[[], FleetList]):
        """`ask_last` raises OSError or a MixserveError if there is no answer."""
        self._ask_last = ask_last
        self._list = FleetList()

    def __call__(self, known: Sequence[Transport]) -> tuple[str, ...]:
        """The addresses in the newest list that was ever told. Raises OSError, and what `ask_last` raises."""
        for replica in known[:_MOST_ASKED]:
            with suppress(MixserveError):
                told = ask_replica(replica)
                # A replica that was taken out of the fleet may still answer, and tell an old list.
                if told.addresses and told.version >= self._list.version:
                    self._list = told
                    return told.addresses
        told = self._ask_last()
        if told.addresses and told.version >= self._list.version:
            self._list = told
        if not self._list.addresses:
            raise OSError("no list of replicas is told there")
        return self._list.addresses


def ask_replica(replica: Transport) -> FleetList:
    """The list that a replica tells. Raises a MixserveError."""
    return decode_server(replica.call(methods.GET_SERVER, ask_load(), _ASK_S)).fleet


class AnyOfFleet:
    """A server of a list, and another one after it has failed."""

    def __init__(self, target: str, find: Callable[[], Sequence[str]], open_transport: Callable[[str], Transport]):
        """`find` returns the addresses, and raises OSError or a MixserveError."""
        self.target = target
        self._find = find
        self._open = open_transport
        self._made = dict[str, Transport]()
        self._used = ""
        self._tried = set[str]()
        self._closed = False
        # Reentrant: the garbage collector may close the client in a thread that holds it.
        self._lock = threading.RLock()

    @property
    def name(self) -> str:
        made = self._made.get(self._used)
        return f"grpc {self.target}" if made is None else made.name

    def read_mode(self, method: str, request: bytes) -> ReadMode:
        made = self._made.get(self._used)
        return ReadMode.BACKGROUND if made is None else made.read_mode(method, request)

    def call(self, method: str, request: bytes, timeout_s: float | None) -> bytes:
        address, transport = self._choose()
        try:
            return transport.call(method, request, timeout_s)
        except Unavailable:
            self._leave(address)
            raise

    def stream(
        self,
        method: str,
        request: bytes,
        timeout_s: float | None,
        replies: int,
        reply_bytes: int,
        lane: Lane | None = None,
    ) -> Replies:
        address, transport = self._choose()
        try:
            return transport.stream(method, request, timeout_s, replies, reply_bytes, lane)
        except Unavailable:
            self._leave(address)
            raise

    def close(self) -> None:
        self._closed = True
        for made in list(self._made.values()):
            made.close()

    def _choose(self) -> tuple[str, Transport]:
        """Raises Unavailable if no address is known."""
        if (used := self._used) and used not in self._tried:
            return used, self._made[used]
        try:
            found = self._find()
        except OSError as error:
            raise Unavailable(f"{self.target}: {error}") from error
        if not found:
            raise Unavailable(f"{self.target}: it has no replica that serves at present")
        with self._lock:
            if self._closed:
                raise Unavailable(f"{self.target}: the client is closed")
            if not set(found) - self._tried:
                self._tried.clear()
            self._used = address = next(one for one in found if one not in self._tried)
            if address not in self._made:
                self._made[address] = self._open(address)
            return address, self._made[address]

    def _leave(self, address: str) -> None:
        with self._lock:
            self._tried.add(address)
