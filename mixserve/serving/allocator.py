"""Gives memory that was freed back to the system, where the allocator is glibc's."""

import ctypes
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

_TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD of mallopt(3)
_KEPT_BYTES = 62 << 20  # what `keep_freed_memory` makes of it
_GIVEN_BYTES = 128 << 10  # glibc's own default
# A block of this size, when it is freed, makes glibc look whether the end of its arena can be given back.
_BLOCK_BYTES = 256 << 10

# Runs a task in each thread that is idle, and waits for all of them.
Visit = Callable[[Callable[[], None]], None]


class _Figures(ctypes.Structure):
    """The struct mallinfo2 of mallinfo(3)."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


@cache
def _glibc() -> Any:
    """The C library, None if it is another one."""
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Figures
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
        library.free.restype, library.free.argtypes = None, (ctypes.c_void_p,)
        return library if library.malloc_trim and library.mallopt else None
    except (OSError, AttributeError):
        return None


def free_bytes() -> int:
    """Bytes that were freed, and that the allocator has; some of them may be with the system already."""
    library = _glibc()
    return 0 if library is None else int(library.mallinfo2().fordblks)


def give_back(visits: Iterable[Visit] = ()) -> None:
    """Return free memory to the system; takes milliseconds. `visits` go to threads that have allocated much."""
    library = _glibc()
    if library is None:
        return

    # malloc_trim returns what lies between blocks in use in all arenas, but what lies after the last one only in that
    # of the main thread. In the others that happens when a block is freed there: by a thread that uses the arena.
    def free_a_block() -> None:
        library.free(library.malloc(_BLOCK_BYTES))

    library.mallopt(_TRIM_THRESHOLD, _GIVEN_BYTES)
    try:
        for visit in visits:
            visit(free_a_block)
        library.malloc_trim(0)
    finally:
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
