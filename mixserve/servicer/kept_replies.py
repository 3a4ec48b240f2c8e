"""Replies that several readers ask for, at once or shortly after one another: made once, shared by all."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from mixserve.error_boundary import for_others
from mixserve.servicer.pending_reply import Pending
from mixserve_client.forks import renew_in_forks

_KEPT_S = 1.0
_UNDER_WAY_S = 60.0  # for one that nobody fetches, since its stream has ended
_KEPT_BYTES = 32 << 20
# However small they are: what they answer takes memory, too, and one that is slow keeps those after it.
_KEPT = 1024

Begin = Callable[[], Pending]
Clock = Callable[[], float]


class KeptReply:
    """A reply under way, made by the first thread that needs it.

    An error goes to all that wait for it; who asks later begins anew.
    """

    def __init__(self, size: int, clock: Clock):
        self.size = size
        self.ends = clock() + _UNDER_WAY_S
        self._clock = clock
        self.is_shared = False
        self._lock = threading.Lock()
        self._pending: Pending | None = None
        self._reply: bytes | None = None
        self._error: Exception | None = None

    def begin(self, begin: Begin) -> "KeptReply":
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
            self.ends = self._clock() + _KEPT_S
            if self.is_shared:
                self._reply, self._pending = reply, None
            return reply


class KeptReplies:
    """The replies of the last second by what they answer; safe to use from many threads.

    Only those that are asked for twice are kept, and what follows them for the same reader: memory that was used just
    now is faster than memory that waits for readers who never come. Up to 32 MiB in 1,024 replies are kept.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._renew()
        renew_in_forks(self, KeptReplies._renew)

    def _renew(self) -> None:
        """Know nothing: in a forked process, replies under way are made by threads of its parent."""
        self._replies: OrderedDict[tuple[Hashable, Hashable], KeptReply] = OrderedDict()
        self._shared: OrderedDict[Hashable, float] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, reader: Hashable, rows: Hashable, size: int, begin: Begin) -> KeptReply:
        """The reply with those rows, of `size` bytes, to what reads under the name `reader`: that of another call where
        there is one, else begun with `begin`."""
        with self._lock:
            self._let_go(size)
            reply = self._replies.get((reader, rows))
            if reply is not None:
                self._shared[reader] = self._clock() + _KEPT_S
                self._shared.move_to_end(reader)
            else:
                reply = self._replies[reader, rows] = KeptReply(size, self._clock)
                self._bytes += size
            reply.is_shared = reader in self._shared
        return reply.begin(begin)

    def _let_go(self, room: int) -> None:
        """Forget what is too old, and the oldest where they are too many for `room` more bytes."""
        now = self._clock()
        while self._replies:
            oldest = next(iter(self._replies.values()))
            if oldest.ends > now and self._bytes + room <= _KEPT_BYTES and len(self._replies) < _KEPT:
                break
            self._bytes -= self._replies.popitem(last=False)[1].size
        while self._shared and (next(iter(self._shared.values())) < now or len(self._shared) >= _KEPT):
            self._shared.popitem(last=False)
