"""Bytes objects for replies, used again when nobody has them any more.

Fresh memory costs more than what is written to it: the system clears every page of it first.
"""

import sys
import threading

import numpy as np
import numpy.typing as npt

from mixserve_client.wire import frame

_IDLE_BYTES = 32 << 20


def references(objects: list[bytes], place: int) -> int:
    """How often the object at that place of the list is referred to, by this interpreter's way of counting."""
    return sys.getrefcount(objects[place])


# Whoever has an object counts, at least once, on every version with a lock: Python 3.14 borrows references instead of
# counting them only where a variable that is counted keeps the object alive meanwhile ("What's new in Python 3.14").
# Without a lock counts are approximate.
COUNTS_ARE_EXACT = getattr(sys, "_is_gil_enabled", lambda: True)()


class ReusedBytes:
    """Safe to use from many threads."""

    def __init__(self, *, reuse: bool = COUNTS_ARE_EXACT) -> None:
        """Without `reuse`, every object is a new one."""
        self._reuse = reuse
        self._known: list[bytes] = []
        # An object that only a list has. No documentation promises what its count is, so it is counted each time, in
        # the same way as the others, and under the lock, so that no other thread counts it meanwhile.
        self._alone = [bytes(1000)]
        self._lock = threading.Lock()

    def take(self, size: int) -> tuple[bytes, npt.NDArray[np.uint8]]:
        """A bytes object of undefined content, and a writable view to fill it through before anyone else sees it."""
        if not self._reuse:
            return frame.unfilled_bytes(size)
        with self._lock:
            alone = references(self._alone, 0)
            for place in range(len(self._known)):
                if len(self._known[place]) == size and references(self._known, place) == alone:
                    found = self._known.pop(place)
                    self._known.append(found)
                    return found, frame.writable(found)
            fresh, memory = frame.unfilled_bytes(size)
            if size <= _IDLE_BYTES:
                self._known.append(fresh)
            while sum(map(len, self._known)) > _IDLE_BYTES and len(self._known) > 1:
                del self._known[0]
            return fresh, memory
