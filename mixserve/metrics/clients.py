"""The readers of a server by client: who they are, where they are, and how long they wait."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.requests import Sender

OTHER = "other"
ACTIVE_S = 60.0  # a reader that has requested nothing for so long does not count as one

_MOST_CLIENTS, _MOST_READERS = 256, 4096
_FORGOTTEN_S = 600.0
_ADMIT_EVERY_S = 60.0

Clock = Callable[[], float]


class ClientNames:
    """Names of clients, up to 256; the next get the name "other". Thread-safe.

    Names come from strangers, and each is a label of several metrics. A name that was silent for ten minutes makes room
    for another one.
    """

    def __init__(self, clock: Clock = time.monotonic, most: int = _MOST_CLIENTS):
        self._clock, self._most = clock, most
        self._seen: OrderedDict[str, float] = OrderedDict()  # the longest silent one first
        self._renew()
        renew_in_forks(self, ClientNames._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def admit(self, name: str) -> str:
        """The name under which to count a client."""
        now = self._clock()
        with self._lock:
            if name not in self._seen and len(self._seen) >= self._most:
                oldest, seen = next(iter(self._seen.items()))
                if now - seen < _FORGOTTEN_S:
                    return OTHER
                del self._seen[oldest]
            self._seen[name] = now
            self._seen.move_to_end(name)
        return name

    def __contains__(self, name: str) -> bool:
        return name in self._seen


class Reader:
    """One iterator of a client, or all calls of a client that belong to none. `position` is that of its last reply."""

    __slots__ = ("admit_at", "client", "key", "position", "seen", "wait_share")

    def __init__(self, client: str, key: object):
        """Readers with equal keys read the same stream."""
        self.client, self.key = client, key
        self.admit_at = 0.0  # when its client's name must be admitted again, so that it is not forgotten
        self.position = 0
        self.seen = 0.0
        self.wait_share: float | None = None


class Readers:
    """The readers of one mixture, up to 4,096: the longest silent ones are forgotten. Thread-safe."""

    def __init__(self, names: ClientNames, clock: Clock = time.monotonic, most: int = _MOST_READERS):
        self._names, self._clock, self._most = names, clock, most
        self._readers: OrderedDict[tuple[str, int, object], Reader] = OrderedDict()
        self._records = dict[str, int]()  # by client
        self._renew()
        renew_in_forks(self, Readers._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def note_request(self, sender: Sender, key: object) -> Reader:
        """A request of a reader of the stream `key`."""
        name, now = (sender.client, sender.reader, key), self._clock()
        with self._lock:
            reader = self._readers.get(name)
            if reader is None:
                reader = self._readers[name] = Reader(sender.client, key)
                if len(self._readers) > self._most:
                    self._readers.popitem(last=False)
            else:
                self._readers.move_to_end(name)
            if now >= reader.admit_at:  # not for each request: it takes as long as all the rest here
                reader.client, reader.admit_at = self._names.admit(sender.client), now + _ADMIT_EVERY_S
            reader.seen = now
            if sender.wait_share is not None:
                reader.wait_share = sender.wait_share
        return reader

    def add_records(self, client: str, records: int) -> None:
        """Count the records of replies to a client."""
        with self._lock:
            self._records[client] = self._records.get(client, 0) + records

    def records(self) -> dict[str, int]:
        """How many records each client has got. Clients that have been forgotten count as "other"."""
        with self._lock:
            for client in [client for client in self._records if client != OTHER and client not in self._names]:
                self._records[OTHER] = self._records.get(OTHER, 0) + self._records.pop(client)
            return dict(self._records)

    def active(self) -> list[Reader]:
        """The readers that have requested something within the last minute."""
        since = self._clock() - ACTIVE_S
        with self._lock:
            return [reader for reader in self._readers.values() if reader.seen >= since]

    def apart(self) -> int:
        """How many positions lie between the first and the last active reader of the same stream, at most."""
        return max((max(places) - min(places) for places in self._places()), default=0)

    def _places(self) -> Iterator[list[int]]:
        by_key = dict[object, list[int]]()
        for reader in self.active():
            by_key.setdefault(reader.key, []).append(reader.position)
        yield from by_key.values()
