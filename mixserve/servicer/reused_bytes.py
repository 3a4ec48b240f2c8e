"""Bytes objects for replies, used again when nobody has them any more.

Fresh memory costs more than what is written to it: the system clears every page of it first.
"""

import sys
import threading

import numpy as np
import numpy.typing as npt

from mixserve_client.wire import frame

_IDLE_BYTES = 32 << 20
# Of an object in a list that is passed to getrefcount, and that nobody else has.
_ALONE = 2


class ReusedBytes:
    """Safe to use from many threads."""

    def __init__(self) -> None:
        self._known: list[bytes] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> tuple[bytes, npt.NDArray[np.uint8]]:
        """A bytes object of undefined content, and a writable view to fill it through before anyone else sees it."""
        with self._lock:
            for place in range(len(self._known)):
                if len(self._known[place]) == size and sys.getrefcount(self._known[place]) == _ALONE:
                    found = self._known.pop(place)
                    self._known.append(found)
                    return found, frame.writable(found)
            fresh, memory = frame.unfilled_bytes(size)
            if size <= _IDLE_BYTES:
                self._known.append(fresh)
            while sum(map(len, self._known)) > _IDLE_BYTES and len(self._known) > 1:
                del self._known[0]
            return fresh, memory
