"""What was read of files and folders, kept as long as these do not change."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from mixserve_client.forks import renew_in_forks

T = TypeVar("T")

Signature = tuple[int, int, int, int]
# Clocks of file systems tick every few milliseconds, so two changes right after one another may have the same time.
_SETTLED_NS = 2_000_000_000


class Unchanged(Generic[T]):
    """The last `most` values, by path. Thread-safe."""

    def __init__(self, most: int, *, settled: bool = False, is_small: Callable[[T], bool] | None = None):
        """With `settled`, what has changed within the last 2 s is not kept: for folders, whose size says nothing.
        With `is_small`, other values are not kept."""
        self._most, self._settled, self._is_small = most, settled, is_small
        self._known: OrderedDict[str, tuple[Signature, T]] = OrderedDict()
        self._renew()
        renew_in_forks(self, Unchanged[T]._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def get(self, path: str, found: os.stat_result, read: Callable[[], T]) -> T:
        """The value of the file at `path`, whose state is `found` now: the last one, or what `read` returns."""
        # An append changes the size, a rewrite the inode, and everything the times.
        signature = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        with self._lock:
            known = self._known.get(path)
            if known is not None and known[0] == signature:
                self._known.move_to_end(path)
                return known[1]
        # Read without the lock: a journal may have hundreds of MiB, and others must not wait for it.
        value = read()
        if self._settled and time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _SETTLED_NS:
            return value
        if self._is_small is not None and not self._is_small(value):
            return value
        with self._lock:
            self._known[path] = signature, value
            self._known.move_to_end(path)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return value
