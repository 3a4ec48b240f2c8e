"""A pool of bytes objects for replies: an object is reused when nothing else refers to it.

Fresh memory costs more than the writes into it, because the kernel clears every page first.
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
# Objects of the right size that one `take` examines, the one taken longest ago first: it is the likeliest to be free.
# Examining all of them took 2.4 ms among 20,000 replies, under the lock.
_LOOKS = 8


def references(objects: Sequence[bytes], place: int) -> int:
    """The reference count of `objects[place]`, as this interpreter counts."""
    # Indexed inside the call: a variable here would be one more reference on some versions and none on others.
    return sys.getrefcount(objects[place])


# With the GIL, every holder of an object counts at least once: Python 3.14 borrows a reference instead of counting it
# only if a counted variable keeps the object alive meanwhile ("What's new in Python 3.14"). Without the GIL, counts are
# approximate.
COUNTS_ARE_EXACT = getattr(sys, "_is_gil_enabled", lambda: True)()


class BytesPool:
    """The memory of replies over gRPC. Thread-safe. Holds up to 32 MiB that no reply uses."""

    piece_bytes = 2 << 20  # measured: gRPC moves the most bytes per second in messages of this size

    def __init__(self, *, reuse: bool = COUNTS_ARE_EXACT) -> None:
        """Without `reuse`, every object is a new one."""
        self._reuse = reuse
        # Keyed by size, in order of use; each deque is in order of examination. The most recent is at the end of both.
        self._known: OrderedDict[int, deque[bytes]] = OrderedDict()
        self._bytes = 0
        # A sample of an object that only a deque refers to. No documentation promises its count, so `take` counts it
        # each time, in the same way as the others, and under the lock: another thread's count would add a reference.
        self._unshared = deque([bytes(1000)])
        self._lock = threading.Lock()
        renew_in_forks(self, BytesPool._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def take(self, size: int) -> tuple[bytes, npt.NDArray[np.uint8]]:
        """A bytes object of `size` undefined bytes, and a writable view to fill it before other code sees it."""
        if not self._reuse:
            return frame.empty_bytes(size)
        with self._lock:
            unshared = references(self._unshared, 0)
            known = self._known.pop(size, None) or deque()
            for _ in range(min(_LOOKS, len(known))):
                is_free = references(known, 0) == unshared
                known.rotate(-1)
                if is_free:
                    self._known[size] = known  # now the most recently used size
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
        """Drop the oldest object of the least recently used size."""
        # A reply may still use it: dropping the pool's reference frees nothing then.
        size, known = next(iter(self._known.items()))
        known.popleft()
        self._bytes -= size
        if not known:
            del self._known[size]
