"""A one-second cache of encoded replies, shared by readers of the same batches."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from mixserve.error_boundary import for_others
from mixserve.servicer.pending_reply import Pending
from mixserve_client.forks import renew_in_forks

_LIFETIME_S = 1.0
_PENDING_S = 60.0  # for a reply that no reader fetches, since its stream has ended
_MOST_BYTES = 32 << 20
# However small they are: their names take memory, too, and a slow reply keeps the later ones from being evicted.
_MOST_REPLIES = 1024

Begin = Callable[[], Pending]
Clock = Callable[[], float]


class CachedReply:
    """A reply that several readers may wait for: the first thread that needs it makes it.

    An error goes to all that wait for it; a later request makes it anew.
    """

    def __init__(self, size: int, clock: Clock):
        self.size = size
        self.ends = clock() + _PENDING_S
        self._clock = clock
        self.is_shared = False
        self._lock = threading.Lock()
        self._pending: Pending | None = None
        self._reply: bytes | None = None
        self._error: Exception | None = None

    def begin(self, begin: Begin) -> "CachedReply":
        """Begin to make it, where that has not been done."""
        with self._lock:
            if self._pending is None and self._reply is None:
                self._pending, self._error = begin(), None
        return self

    def result(self) -> bytes:
        """The reply, waited for."""
        with self._lock:
            if self._reply is not None:
                return self._reply
            if self._pending is None:
                assert self._error is not None
                raise self._error
            try:
                reply = self._pending.result()
            except BaseException as error:
                self._pending, self._error = None, for_others(error)
                raise
            self.ends = self._clock() + _LIFETIME_S
            # Otherwise only what makes the reply stays: to make it once more for a second reader is rare, and costs
            # less than to hold the replies of readers that share nothing.
            if self.is_shared:
                self._reply, self._pending = reply, None
            return reply


class ReplyCache:
    """The replies of the last second by what they answer; safe to use from many threads.

    Only replies that are requested twice are cached, and what follows them for the same reader: memory that was used
    just now is faster than memory that waits for readers who never come. Holds up to 32 MiB in 1,024 replies.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._renew()
        renew_in_forks(self, ReplyCache._renew)

    def _renew(self) -> None:
        """Start empty: in a forked process, pending replies are made by threads of its parent."""
        self._replies: OrderedDict[tuple[Hashable, Hashable], CachedReply] = OrderedDict()
        self._shared: OrderedDict[Hashable, float] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, reader: Hashable, rows: Hashable, size: int, begin: Begin) -> CachedReply:
        """The reply with those rows, of `size` bytes, to what reads under the name `reader`: that of another call where
        there is one, else begun with `begin`."""
        with self._lock:
            self._evict(size)
            reply = self._replies.get((reader, rows))
            if reply is not None:
                self._shared[reader] = self._clock() + _LIFETIME_S
                self._shared.move_to_end(reader)
            else:
                reply = self._replies[reader, rows] = CachedReply(size, self._clock)
                self._bytes += size
            reply.is_shared = reader in self._shared
        return reply.begin(begin)

    def _evict(self, room: int) -> None:
        """Drop what is too old, and the oldest replies if there is no room for `room` more bytes."""
        now = self._clock()
        while self._replies:
            oldest = next(iter(self._replies.values()))
            if oldest.ends > now and self._bytes + room <= _MOST_BYTES and len(self._replies) < _MOST_REPLIES:
                break
            self._bytes -= self._replies.popitem(last=False)[1].size
        while self._shared and (next(iter(self._shared.values())) < now or len(self._shared) >= _MOST_REPLIES):
            self._shared.popitem(last=False)
