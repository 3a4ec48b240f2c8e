"""Records of tokens that are announced are read from the disk before they are taken."""

import ctypes
import mmap
import os
import re
import time

import numpy as np
import pytest

from mixserve import TokenSource
from mixserve.sources.location import locate


def is_in_memory(mapped: mmap.mmap, byte: int) -> bool:
    """Whether the page is cached. Unlike reading with RWF_NOWAIT, asking does not make the system read it."""
    page = byte // mmap.PAGESIZE * mmap.PAGESIZE
    address = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0] + page
    found = ctypes.c_ubyte()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(1), ctypes.byref(found)) == 0
    return bool(found.value & 1)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="macOS cannot")
@pytest.mark.parametrize(
    "options",
    [
        {"sequence_length": 1000},
        {"sequence_length": 1001, "overlap": 1, "segments": True, "eod": 0},
        {"sequence_length": 1000, "pack": "best_fit", "eod": 0},
    ],
)
def test_prefetched_records_are_read_from_the_disk(tmp_path, options):
    ids = np.arange(2 << 20, dtype=np.uint16)
    ids[999::1000] = 0
    ids.tofile(tmp_path / "a.bin")
    source = TokenSource(tmp_path / "a.bin", dtype="uint16", **options)
    (file,) = source.files()
    owner = source._layout.arrays[0]
    while isinstance(owner, np.ndarray):
        owner = owner.base
    owner.madvise(mmap.MADV_DONTNEED)  # pages that a process has mapped stay
    descriptor = os.open(file.path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    wanted = [int(re.search(r"token ([\d,]+)", locate(source, record))[1].replace(",", "")) for record in (500, 1500)]
    if any(is_in_memory(owner, 2 * token) for token in wanted):
        pytest.skip("the file system keeps the file in memory")
    source.prefetch(np.array([500, 1500]))
    deadline = time.monotonic() + 10
    while not all(is_in_memory(owner, 2 * (token + at)) for token in wanted for at in (0, 990)):
        assert time.monotonic() < deadline
