"""An index of a file, as integers: made once, kept in the prepared folder, and read from there."""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixserve.sources.open_file import OpenFile
from mixserve.sources.prepared import kept, remove_damaged

_logger = logging.getLogger("mixserve")

Index = npt.NDArray[np.int64]
_DTYPE = np.dtype("<i8")
_DIGEST_BYTES = hashlib.sha256().digest_size
_SMALL_BYTES = 1 << 20
_LONG_S = 5.0
_DIGESTED = 1 << 20


def kept_index(name: str, file: OpenFile, make: Callable[[OpenFile], Index]) -> Index:
    """What `make(file)` returns, made again only if the file has changed: then it replaces that of the file before.

    If the prepared folder cannot be used, the index is in memory alone. Raises what `make` does.
    """
    made: list[Index] = []
    # A folder for each path: it has few files, however many are indexed.
    name = f"{name}/{hashlib.sha256(os.fsencode(file.path.absolute())).hexdigest()[:32]}/index"

    def write(path: Path) -> None:
        begin = time.monotonic()
        made.append(make(file))
        if time.monotonic() - begin > _LONG_S:
            _logger.info("made the index of %s in %.0f s; it is kept", file.path, time.monotonic() - begin)
        content = np.ascontiguousarray(made[0], _DTYPE).tobytes()
        path.write_bytes(content + hashlib.sha256(content).digest())

    try:
        path = kept(name, file.version(), write)
        if not made:
            found = _read(path)
            if found is not None:
                return found
            _logger.warning("the index %s of %s is damaged; it is made again", path, file.path)
            remove_damaged(path, lambda: _read(path) is None)
            path = kept(name, file.version(), write)
            if not made and (found := _read(path)) is not None:
                return found  # another process was faster
        _remove_others(path)
    except OSError as error:
        if not made:
            made.append(make(file))  # the error may be its own
        _logger.warning("the index of %s is in memory alone: %s", file.path, error)
    return made[0] if made else make(file)


def _remove_others(path: Path) -> None:
    """Remove the indexes of what lay at the same path before. Who has mapped one keeps it."""
    for other in path.parent.glob("index-*"):
        if other.name != path.name:
            other.unlink(missing_ok=True)


def digest_index(index: Index) -> bytes:
    """The SHA-256 of the index: of all of it, or of a million values spread over it if it is larger."""
    step = max(1, len(index) // _DIGESTED)
    return hashlib.sha256(np.ascontiguousarray(index[::step], _DTYPE).tobytes()).digest()


def _read(path: Path) -> Index | None:
    """The index in a file, mapped if it is large; None if the file is damaged."""
    size = path.stat().st_size - _DIGEST_BYTES
    if size < 0 or size % _DTYPE.itemsize:
        return None
    if size <= _SMALL_BYTES:
        content = path.read_bytes()
        whole = content[size:] == hashlib.sha256(content[:size]).digest()
        return np.frombuffer(content[:size], _DTYPE).astype(np.int64) if whole else None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for at in range(0, size, _SMALL_BYTES):
            digest.update(file.read(min(_SMALL_BYTES, size - at)))
        if file.read() != digest.digest():
            return None
    return np.memmap(path, _DTYPE, "r", shape=(size // _DTYPE.itemsize,))
