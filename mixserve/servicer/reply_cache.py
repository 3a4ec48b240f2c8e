"""A one-second cache of encoded replies, shared by readers of the same batches."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress

import numpy as np
from jaxtyping import Int

from mixserve.error_boundary import for_others
from mixserve.metrics.replies import Times
from mixserve.servicer.jobs import LOOK_EVERY_S, Abandoned, check_wanted
from mixserve.servicer.pending_reply import Pending
from mixserve.servicer.reply_memory import Message
from mixserve_client.forks import renew_in_forks

# Trainers of a sweep read the same rows at about the same time; a reply waits this long for the next of them.
_LIFETIME_S = 1.0
_PENDING_S = 60.0  # for a reply that no reader fetches, because its stream has ended
_MOST_BYTES = 32 << 20
# Also for small replies: their keys take memory too, and a slow reply at the front keeps later ones from eviction.
_MOST_REPLIES = 1024

Begin = Callable[[], Pending]
Clock = Callable[[], float]


class CachedReply:
    """A reply that several readers may wait for. The first thread that needs it makes it.

    All threads that wait get its error; a later request makes the reply again.
    """

    def __init__(self, size: int, clock: Clock):
        self.size = size
        self.ends = clock() + _PENDING_S
        self._clock = clock
        self.is_shared = False
        # Held while the reply is made: the other readers wait for that one gather instead of starting their own.
        self._lock = threading.Lock()
        self._pending: Pending | None = None
        self._leaf_ids: Int[np.ndarray, " rows"] | None = None
        self._times = list[Times]()  # not taken yet
        self._reply: Message | None = None
        self._error: Exception | None = None
        self._users = 0  # threads that have begun, and not got the reply

    def begin(self, begin: Begin) -> "CachedReply":
        """Begin the reply with `begin`, unless it has begun already. Raises Abandoned too."""
        _acquire(self._lock)
        try:
            # Also after an error, which `result` leaves with both None: an error is never cached.
            if self._pending is None and self._reply is None:
                self._pending, self._error = begin(), None
            self._users += 1
        finally:
            self._lock.release()
        return self

    @property
    def leaf_ids(self) -> Int[np.ndarray, " rows"]:
        assert self._leaf_ids is not None
        return self._leaf_ids

    def take_times(self) -> Times | None:
        with suppress(IndexError):  # another thread may take them meanwhile
            return self._times.pop()
        return None

    def result(self) -> Message:
        """Wait for the reply. Raises what making it raises, and Abandoned."""
        _acquire(self._lock)
        try:
            return self._result()
        finally:
            self._users -= 1
            if self._users <= 0:
                # Its traceback leads to the frames of the call, and they to the call: gRPC counts it as open until
                # they are gone, and a connection may have 256 calls.
                self._error = None
            self._lock.release()

    def _result(self) -> Message:
        if self._reply is not None:
            return self._reply
        if self._pending is None:
            assert self._error is not None
            raise self._error
        try:
            reply = self._pending.result()
            self._leaf_ids, times = self._pending.leaf_ids, self._pending.take_times()
            if times is not None:
                self._times.append(times)
        except Abandoned:
            raise  # by this thread's own client: the next thread goes on with what has begun
        except BaseException as error:
            # This thread keeps its own KeyboardInterrupt or SystemExit; the others get an Exception.
            self._pending, self._error = None, for_others(error)
            self.ends = self._clock() + _LIFETIME_S
            raise
        self.ends = self._clock() + _LIFETIME_S  # counted from the end: a slow source may take longer than a second
        # An unshared reply keeps only what makes it. Making it again for a second reader is rare, and costs less
        # than holding 32 MiB of replies for readers that share nothing.
        if self.is_shared:
            self._reply, self._pending = reply, None
        return reply


def _acquire(lock: threading.Lock) -> None:
    """Raises Abandoned if the client of this thread's call goes meanwhile."""
    if not lock.acquire(blocking=False):
        while not lock.acquire(timeout=LOOK_EVERY_S):
            check_wanted()


class ReplyCache:
    """The replies of the last second, by selection and rows. Thread-safe. Holds up to 1,024 replies of 32 MiB.

    It keeps the bytes of replies only while at least two readers share a selection. Other replies return to the pool at
    once: memory that was just used is faster than memory that waits for readers who never come.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._renew()
        renew_in_forks(self, ReplyCache._renew)

    def _renew(self) -> None:
        """Start empty: in a forked process, the threads that make the pending replies do not exist."""
        self._replies: OrderedDict[tuple[Hashable, Hashable], CachedReply] = OrderedDict()
        self._shared: OrderedDict[Hashable, float] = OrderedDict()
        self.hits = self.misses = 0
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, reader: Hashable, rows: Hashable, size: int, begin: Begin) -> CachedReply:
        """The reply of `size` bytes to the selection `reader` for `rows`: the cached one, else one from `begin`."""
        with self._lock:
            self._evict(size)
            reply = self._replies.get((reader, rows))
            if reply is not None:
                self.hits += 1
                self._shared[reader] = self._clock() + _LIFETIME_S
                self._shared.move_to_end(reader)
            else:
                self.misses += 1
                reply = self._replies[reader, rows] = CachedReply(size, self._clock)
                self._bytes += size
            # Per selection, not per reply: readers that shared one reply go on to share the next ones.
            reply.is_shared = reader in self._shared
        # Outside the lock: beginning plans, which takes milliseconds, and other readers must not wait for it.
        return reply.begin(begin)

    def drop_old(self) -> None:
        """Drop replies that are too old; `get` does so too, but may not be called for long."""
        with self._lock:
            self._evict(0)

    def _evict(self, room: int) -> None:
        """Drop replies that are too old, then the oldest ones until there is room for `room` more bytes."""
        now = self._clock()
        # Only from the front, so that each call costs what it evicts. `ends` is not sorted: a slow reply holds up those
        # after it, for at most a minute or until the byte or count limit is reached.
        while self._replies:
            oldest = next(iter(self._replies.values()))
            if oldest.ends > now and self._bytes + room <= _MOST_BYTES and len(self._replies) < _MOST_REPLIES:
                break
            self._bytes -= self._replies.popitem(last=False)[1].size
        while self._shared and (next(iter(self._shared.values())) < now or len(self._shared) >= _MOST_REPLIES):
            self._shared.popitem(last=False)
