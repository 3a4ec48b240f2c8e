"""A pool of bytes objects for replies: an object is reused when there is no other reference to it.

Fresh memory costs more than what is written to it: the system clears every page of it first.
"""

import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mixserve_client.forks import renew_in_forks
from mixserve_client.wire import frame

_IDLE_BYTES = 32 << 20
# How many objects of the right size are looked at: those that were taken first are the likeliest to be free.
_LOOKS = 8


def references(objects: Sequence[bytes], place: int) -> int:
    """How often the object at that place of the sequence is referred to, by this interpreter's way of counting."""
    return sys.getrefcount(objects[place])


# Whoever has an object counts, at least once, on every version with a lock: Python 3.14 borrows references instead of
# counting them only where a variable that is counted keeps the object alive meanwhile ("What's new in Python 3.14").
# Without a lock counts are approximate.
COUNTS_ARE_EXACT = getattr(sys, "_is_gil_enabled", lambda: True)()


class BytesPool:
    """Safe to use from many threads. Holds up to 32 MiB that no reply uses."""

    def __init__(self, *, reuse: bool = COUNTS_ARE_EXACT) -> None:
        """Without `reuse`, every object is a new one."""
        self._reuse = reuse
        # By size, the size that was wanted last at the end; of each the one that was looked at last at the end.
        self._known: OrderedDict[int, deque[bytes]] = OrderedDict()
        self._bytes = 0
        # An object that only such a deque has. No documentation promises what its count is, so it is counted each time,
        # in the same way as the others, and under the lock, so that no other thread counts it meanwhile.
        self._alone = deque([bytes(1000)])
        self._lock = threading.Lock()
        renew_in_forks(self, BytesPool._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def take(self, size: int) -> tuple[bytes, npt.NDArray[np.uint8]]:
        """A bytes object of undefined content, and a writable view to fill it through before anyone else sees it."""
        if not self._reuse:
            return frame.empty_bytes(size)
        with self._lock:
            alone = references(self._alone, 0)
            known = self._known.pop(size, None) or deque()
            for _ in range(min(_LOOKS, len(known))):
                is_free = references(known, 0) == alone
                known.rotate(-1)
                if is_free:
                    self._known[size] = known  # at the end
                    return known[-1], frame.writable(known[-1])
            fresh, memory = frame.empty_bytes(size)
            if size <= _IDLE_BYTES:
                known.append(fresh)
                self._bytes += size
            if known:
                self._known[size] = known
            while self._bytes > _IDLE_BYTES:
                self._evict()
            return fresh, memory

    def _evict(self) -> None:
        """Drop the oldest object of the size that was not wanted for longest."""
        size, known = next(iter(self._known.items()))
        known.popleft()
        self._bytes -= size
        if not known:
            del self._known[size]
