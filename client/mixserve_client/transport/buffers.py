"""Memory that is lent out as arrays, and used again when nothing looks at it any more."""

import mmap
import os
import threading
import weakref
from collections import OrderedDict, deque
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

_GRAIN = 64 << 10
_IDLE_BYTES = 128 << 20


class Memory:
    """A mapping of `size` bytes, lent to one borrower at a time; `lent_after` is how many forks came before that."""

    def __init__(self, mapping: mmap.mmap):
        self.size = len(mapping)
        self.lent_after = 0
        self._mapping = mapping

    def lend(self, returned: "SimpleQueue[Memory]", *, writable: bool) -> npt.NDArray[np.uint8]:
        """The root of all arrays over this memory, which is put on `returned` when the last of them is gone."""
        root = np.frombuffer(self._mapping, np.uint8)
        root.flags.writeable = writable
        self.lent_after = forks()
        # Every view keeps the root alive, and so do JAX arrays over it; a view may die long before them. Only a queue
        # is touched then: that is wherever the last reference happens to go, whatever locks are held there.
        weakref.finalize(root, returned.put, self).atexit = False
        return root


M = TypeVar("M", bound=Memory)


class IdleMemory(Generic[M]):
    """Memory that nobody uses, by size and by age; each call costs the same however much there is."""

    def __init__(self) -> None:
        self.bytes = 0
        self._by_age: OrderedDict[M, None] = OrderedDict()
        self._by_size: dict[int, deque[M]] = {}

    def put(self, memory: M) -> None:
        """Keep it as the newest."""
        self._by_age[memory] = None
        self._by_size.setdefault(memory.size, deque()).append(memory)
        self.bytes += memory.size

    def take(self, size: int) -> M | None:
        """The newest of exactly that size: it is the likeliest to be in the processor's caches."""
        return self._remove(size, -1) if size in self._by_size else None

    def take_oldest(self) -> M | None:
        """The oldest of all sizes, which is the oldest of its own."""
        oldest = next(iter(self._by_age), None)
        return None if oldest is None else self._remove(oldest.size, 0)

    def clear(self) -> None:
        """Forget all."""
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
    """Private memory of this process, by size."""

    def __init__(self) -> None:
        self._returned: SimpleQueue[Memory] = SimpleQueue()
        self._idle = IdleMemory[Memory]()
        self._lock = threading.Lock()

    def borrow(self, size: int) -> npt.NDArray[np.uint8]:
        """A writable array of at least `size` bytes, aligned to a page, of undefined content."""
        with self._lock:
            self._take_back()
            size = round_up(size)
            if size > _IDLE_BYTES:  # it would not be kept, so it need not come back
                return np.frombuffer(_private(size), np.uint8)
            memory = self._idle.take(size) or Memory(_private(size))
            return memory.lend(self._returned, writable=True)

    def _take_back(self) -> None:
        for memory in drain(self._returned):
            self._idle.put(memory)
        while self._idle.bytes > _IDLE_BYTES:
            self._idle.take_oldest()


def _private(size: int) -> mmap.mmap:
    # Shared, which is the default, would mean shared with the processes that are forked from this one.
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"there is no memory for a batch of {size} bytes: ask for fewer rows at a time") from error


_forks = 0


def forks() -> int:
    """How often this process has been forked."""
    return _forks


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(before=_count_fork)


def round_up(size: int) -> int:
    """`size` as a number of bytes that memory comes in."""
    return -(-max(size, 1) // _GRAIN) * _GRAIN


def drain(queue: "SimpleQueue[Memory]") -> list[Memory]:
    """What is in the queue now."""
    found = list[Memory]()
    while True:
        try:
            found.append(queue.get_nowait())
        except Empty:
            return found
