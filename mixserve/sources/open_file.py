"""Files of data, mapped into memory. Their descriptors stay open, to notice changes and to read ahead."""

import errno
import hashlib
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from mixserve.descriptors import allow_many_files
from mixserve_client.errors import SourceChanged

T = TypeVar("T")
_ATTRIBUTE = "_mixserve_open_file"
_LOOK_S = 0.5
Bytes = npt.NDArray[np.uint8]


class OpenFile:
    """A regular file, open for reading, as it was when it was opened."""

    def __init__(self, path: Path | str):
        """Raises OSError if the file cannot be opened, ValueError if it is a folder, a pipe or a device."""
        self.path = Path(path)
        # Before it is opened: opening a pipe would wait for its writer.
        check_is_regular(self.path)
        self._descriptor = _retry_with_more_files(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        # Not a file object: its end would be a ResourceWarning, and no view of the map can close it.
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        status = os.fstat(self._descriptor)
        self.size, self._changed_ns = status.st_size, status.st_mtime_ns
        self._inode = status.st_ino
        self._look_at = time.monotonic() + _LOOK_S
        self._seen: str | None = None  # what was wrong at the last look

    def map(self) -> Bytes:
        """The file's bytes, mapped read-only; arrays made of them keep this file open."""
        if self.size == 0:
            return np.empty(0, np.uint8)  # the system cannot map an empty file
        return _retry_with_more_files(self._map)

    def _map(self) -> Bytes:
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            mapped = np.memmap(file, np.uint8, "r", shape=(self.size,))
        mapped.filename = str(self.path.absolute())  # a file without a name, to NumPy
        setattr(mapped, _ATTRIBUTE, self)
        return mapped

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on. Raises SourceChanged if the file does not have them, OSError."""
        data = os.pread(self._descriptor, size, offset)
        # pread returns at most 2 GiB at a time, and a signal may cut it short.
        while len(data) < size and (more := os.pread(self._descriptor, size - len(data), offset + len(data))):
            data += more
        if len(data) < size:
            self.check_unchanged()
            raise SourceChanged(
                f"{self.path} ended at byte {offset + len(data):,}, and bytes up to {offset + size:,} were to be read: "
                "what is known of it is of another file"
            )
        return data

    def read_head(self, size: int) -> bytes:
        """The first `size` bytes, or all if there are fewer. Raises what `read` does."""
        return self.read(0, min(size, self.size))

    def announce(self, offset: int, size: int) -> None:
        """Ask the system to read these bytes soon, without waiting for them. Errors are left to those who read them."""
        # Of the two system calls this one lets go of the interpreter's lock; mmap's madvise does not.
        if hasattr(os, "posix_fadvise"):  # macOS has none
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def is_cached(self, offset: int) -> bool:
        """Whether the page at `offset` is in memory. True also if the system cannot say."""
        if not hasattr(os, "RWF_NOWAIT"):
            return True
        try:
            return os.preadv(self._descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) >= 0
        except BlockingIOError:
            return False
        except OSError:  # a file system without RWF_NOWAIT
            return True

    def check_unchanged(self) -> None:
        """Raises SourceChanged if the file's size or time of change is not what it was.

        Looks at the open file and not at its path, so that a file may be replaced by renaming another to its name.
        """
        try:
            status = os.fstat(self._descriptor)
        except OSError as error:  # where a server has the file, it may have been removed there
            raise SourceChanged(f"{self.path} can no longer be read: {error.strerror}") from error
        if status.st_size != self.size:
            raise SourceChanged(
                f"{self.path} has {status.st_size:,} bytes now; it had {self.size:,} when it was opened"
            )
        if status.st_mtime_ns != self._changed_ns:
            raise SourceChanged(f"{self.path} was written to after it was opened")

    def check_lately(self) -> None:
        """As `check_unchanged`, by what was seen at most half a second ago: for many who read the same file."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            try:
                self.check_unchanged()
                self._seen = None
            except SourceChanged as error:
                self._seen = str(error)
        if self._seen is not None:
            raise SourceChanged(self._seen)

    def version(self) -> bytes:
        """The SHA-256 of this file's place on this machine, size and time of change: the key of what is kept of it, and
        no identity of its content."""
        parts = self.path.absolute(), self._inode, self.size, self._changed_ns
        return hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogateescape")).digest()

    def is_at_path(self) -> bool:
        """Whether the path leads to this file, as it did when it was opened."""
        return os.path.samestat(os.fstat(self._descriptor), self.path.stat())

    def __reduce__(self) -> Any:
        return OpenFile, (str(self.path),)

    def __repr__(self) -> str:
        return f"OpenFile({str(self.path)!r}, size={self.size})"


def map_file(path: Path | str) -> Bytes:
    """The bytes of the file at `path`, mapped read-only. Raises what `OpenFile` does."""
    return OpenFile(path).map()


def read_ranges(files: Sequence[OpenFile], offsets: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """`sizes[i]` bytes from `offsets[i]` of `files[i]` on, for all i. Raises SourceChanged as `OpenFile.read` does."""
    pread = os.pread  # a method call for each of them would take half as long as the reads
    found = [pread(file._descriptor, size, at) for file, at, size in zip(files, offsets, sizes, strict=True)]
    for place, (data, size) in enumerate(zip(found, sizes, strict=True)):
        if len(data) != size:
            found[place] = files[place].read(offsets[place], size)
    return found


def file_of(array: np.ndarray) -> tuple[OpenFile, int] | None:
    """The open file of which `array` is a view, and the byte in it at which the array's memory begins; None if there
    is none."""
    mapped = map_of(array)
    if mapped is None or mapped.filename is None or array.size == 0:
        return None
    file: OpenFile | None = getattr(mapped, _ATTRIBUTE, None)
    if file is None:
        # A map that the user made: the file of that name is nearly always the one that is mapped.
        try:
            file = OpenFile(Path(mapped.filename))
        except (OSError, ValueError):
            return None
        setattr(mapped, _ATTRIBUTE, file)
    low = np.lib.array_utils.byte_bounds(array)[0]
    return file, int(low) - int(mapped.__array_interface__["data"][0]) + mapped.offset


def files_of(source: Any) -> list[OpenFile]:
    """The files of a source: those that it names in `files()`, and those of which its `blocks()` are views."""
    files, blocks = getattr(source, "files", None), getattr(source, "blocks", None)
    found = list(cast(Iterable[OpenFile], files())) if callable(files) else []
    if callable(blocks):
        placed = [
            file_of(array) for block in cast(Iterable[Mapping[str, np.ndarray]], blocks()) for array in block.values()
        ]
        found += [one[0] for one in placed if one is not None]
    return list({id(file): file for file in found}.values())


def map_of(array: np.ndarray) -> "np.memmap | None":
    """The map of a whole file, or of a part of it, of which `array` is a view; None if it is none."""
    mapped: np.memmap | None = None
    base: Any = array
    while isinstance(base, np.ndarray):
        # The last one alone: NumPy copies the attributes of a map to its views, which begin elsewhere.
        mapped = base if isinstance(base, np.memmap) else mapped
        base = base.base
    return mapped


def check_is_regular(path: Path, *, or_folder: bool = False) -> None:
    """Raises ValueError unless `path` is a file, or a folder if `or_folder`; OSError if it does not exist."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or (or_folder and stat.S_ISDIR(mode)):
        return
    found = next((name for is_one, name in _NO_FILES if is_one(mode)), "something else")
    raise ValueError(f"path: {path} must be a file{' or a folder' if or_folder else ''}, got {found}")


_NO_FILES: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _retry_with_more_files(opened: Callable[[], T]) -> T:
    """The result of `opened`, tried again under a higher limit if the process may open no more files."""
    try:
        return opened()
    except OSError as error:
        if error.errno != errno.EMFILE or not allow_many_files():
            raise
    return opened()
