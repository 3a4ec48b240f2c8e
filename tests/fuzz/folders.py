"""Folders in memory for files that exist for a moment."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

VARIABLE = "MIXSERVE_FUZZ_FOLDER"  # a folder that the parent process removes, however this one ends
_MEMORY = Path("/dev/shm")


def memory_folder() -> Path:
    """A new folder, in memory if this system has such a place; it goes with the process."""
    parent = os.environ.get(VARIABLE) or (_MEMORY if _MEMORY.is_dir() else None)
    made = Path(tempfile.mkdtemp(prefix="mixserve-fuzz-", dir=parent))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
