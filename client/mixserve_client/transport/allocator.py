"""Makes glibc keep the memory of freed replies, so that the next replies reuse it."""

import numpy as np

# Just below 32 MiB, the largest block that raises the thresholds of glibc.
_BLOCK_BYTES = 31 << 20


def keep_freed_memory() -> None:
    """Make glibc keep freed blocks of up to 31 MiB, 62 MiB in all; other allocators ignore this.

    By default glibc returns such blocks to the system, which then has to clear fresh pages for every reply: that costs
    more than receiving it. glibc raises its thresholds when the first large block is freed, so this frees one.
    """
    np.empty(_BLOCK_BYTES, np.uint8)  # costs no memory, since its pages are never touched
