"""A hint to the allocator, so that the memory of one reply serves the next."""

import numpy as np

# Just below the largest block that glibc learns from.
_BLOCK_BYTES = 31 << 20


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 31 MiB, and 62 MiB of them, where it would return each to the system.

    It learns that from the first block of such a size that is freed: any large array does the same, later. Without it
    the system clears fresh pages for every reply, which costs more than receiving it. Other allocators take no notice.
    """
    np.empty(_BLOCK_BYTES, np.uint8)  # never touched, so it costs no memory
