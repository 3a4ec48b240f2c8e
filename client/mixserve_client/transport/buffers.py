"""Pools of memory that is lent as arrays, and reused when the last array over it is gone."""

import mmap
import os
import threading
import weakref
from collections import OrderedDict, deque
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

# Sizes are rounded up to this, so that batches of nearly equal sizes reuse the same memory.
_UNIT_BYTES = 64 << 10
_IDLE_BYTES = 128 << 20


class Memory:
    """A mapping of `size` bytes, lent to one borrower at a time; `fork_count` is `forks()` at that time."""

    def __init__(self, mapping: mmap.mmap):
        self.size = len(mapping)
        self.fork_count = 0
        self._mapping = mapping

    def lend(self, returned: "SimpleQueue[Memory]", *, writable: bool) -> npt.NDArray[np.uint8]:
        """The root of all arrays over this memory, uint8 (size,); the memory goes to `returned` when all are gone."""
        root = np.frombuffer(self._mapping, np.uint8)
        root.flags.writeable = writable
        self.fork_count = forks()
        key = id(self)

        def come_back(_: object) -> None:
            del _lent[key]
            returned.put(self)

        # On the root, not on the view that the user gets: every view, and every JAX array that `device_put` made
        # without a copy, keeps the root alive, but not that view. The callback may run in any thread, with any lock
        # held, so it only puts on a SimpleQueue, which is reentrant. Not `weakref.finalize`: right after a trainer's
        # step, when its code is no longer in the processor's caches, it takes 20 microseconds, and this takes 3.
        _lent[key] = weakref.ref(root, come_back)
        return root


# The references to the roots of lent memory, by the memory's id. They outlive the roots, and each keeps its memory.
_lent: dict[int, Any] = {}


M = TypeVar("M", bound=Memory)


class IdleMemory(Generic[M]):
    """Unused memory by size and by age; every operation takes constant time."""

    def __init__(self) -> None:
        self.bytes = 0
        self._by_age: OrderedDict[M, None] = OrderedDict()
        self._by_size: dict[int, deque[M]] = {}

    def put(self, memory: M) -> None:
        """Add `memory` as the newest."""
        self._by_age[memory] = None
        self._by_size.setdefault(memory.size, deque()).append(memory)
        self.bytes += memory.size

    def take(self, size: int) -> M | None:
        """Remove and return the newest of exactly that size, which is the likeliest to be in the processor's caches."""
        return self._remove(size, -1) if size in self._by_size else None

    def take_oldest(self) -> M | None:
        """Remove and return the oldest of all sizes."""
        oldest = next(iter(self._by_age), None)
        # The oldest of all is also the first of its size, so `_remove` need not search.
        return None if oldest is None else self._remove(oldest.size, 0)

    def clear(self) -> None:
        """Drop all memory."""
        while self.take_oldest() is not None:
            pass

    def _remove(self, size: int, end: int) -> M:
        of_size = self._by_size[size]
        memory = of_size.pop() if end else of_size.popleft()
        if not of_size:
            del self._by_size[size]
        del self._by_age[memory]
        self.bytes -= size
        return memory


class MemoryPool:
    """A pool of private memory of this process."""

    def __init__(self) -> None:
        self._returned: SimpleQueue[Memory] = SimpleQueue()
        self._idle = IdleMemory[Memory]()
        self._lent_bytes = 0
        self._lock = threading.Lock()

    @property
    def lent_bytes(self) -> int:
        """The bytes of memory that arrays are over, as far as it comes from the pool."""
        with self._lock:
            self._reclaim()
            return self._lent_bytes

    def borrow(self, size: int) -> npt.NDArray[np.uint8]:
        """A writable array of at least `size` bytes (uint8, one dimension), aligned to a page, of undefined content.

        Raises MemoryError.
        """
        with self._lock:
            self._reclaim()
            size = round_up(size)
            if size > _IDLE_BYTES:  # the pool would drop it at once
                return np.frombuffer(_map_private(size), np.uint8)
            memory = self._idle.take(size) or Memory(_map_private(size))
            self._lent_bytes += size
            return memory.lend(self._returned, writable=True)

    def drop_idle(self) -> None:
        """Return the memory that no array is over to the system."""
        with self._lock:
            self._reclaim()
            self._idle.clear()

    def _reclaim(self) -> None:
        for memory in drain(self._returned):
            self._idle.put(memory)
            self._lent_bytes -= memory.size
        while self._idle.bytes > _IDLE_BYTES:
            self._idle.take_oldest()


def _map_private(size: int) -> mmap.mmap:
    # The default, MAP_SHARED, would share the pages with forked processes, which would write into each other's batches.
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"there is no memory for a batch of {size} bytes: request fewer rows at a time") from error


_forks = 0


def forks() -> int:
    """The number of forks so far; a forked process continues its parent's count."""
    return _forks


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(before=_count_fork)


def round_up(size: int) -> int:
    """The smallest size of memory that holds `size` bytes."""
    return -(-max(size, 1) // _UNIT_BYTES) * _UNIT_BYTES


def drain(queue: "SimpleQueue[Memory]") -> list[Memory]:
    """Remove and return what is in the queue now."""
    found = list[Memory]()
    while True:
        try:
            found.append(queue.get_nowait())
        except Empty:
            return found
