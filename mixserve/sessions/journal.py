"""A session's record on disk: an append-only file of entries, each with its length and a checksum.

An entry is written, and on the disk, before the call that it stands for is answered. What a killed server wrote only
half of was never answered, and is cut off; anything else that does not fit its checksum is an error.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from mixserve.sessions.storage import StateFolder, bytes_below, make_folder, open_regular, sync_folder
from mixserve_client.errors import CorruptCheckpoint

_MAGIC = b"mixserve journal 1\n"
_HEAD = struct.Struct("<III")  # length of the entry, CRC-32 of the length, CRC-32 of the entry
_COMPACTED_BYTES = 256 << 10
_LONGER_BYTES = 128 << 20  # than its first entry, at most
_ENTRY_BYTES = 256 << 20
_BYTES = 1 << 30  # more than those above come to
_PIECE_BYTES = 1 << 20


class Journal:
    """One file; its owner takes care that one thread at a time uses it."""

    def __init__(self, path: Path, folder: StateFolder):
        self.path = path
        self._folder = folder
        self._whole_bytes = 0
        self._first_bytes = 0

    @property
    def is_long(self) -> bool:
        """Whether it is time to begin it anew: by then the file is many times what it must hold."""
        first = self._first_bytes
        return self._whole_bytes > _COMPACTED_BYTES + min(8 * first, first + _LONGER_BYTES)

    def read(self) -> list[bytes]:
        """The entries. Raises FileNotFoundError, OSError, and CorruptCheckpoint where the file is damaged."""
        return list(self.entries())

    def entries(self) -> Iterator[bytes]:
        """The entries, one after another, of which all must be taken before anything is added. Raises as `read`."""
        with open_regular(self.path, _BYTES) as (file, size):
            yield from self._entries(file, size)

    def _entries(self, file: BufferedReader, size: int) -> Iterator[bytes]:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise self._damaged("it does not begin as a journal does")
        at, first = len(_MAGIC), 0
        while at + _HEAD.size <= size and len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, length_checksum, checksum = _HEAD.unpack(head)
            if not length and not any(head) and _is_zeros(file):
                break  # zeros, which a machine that lost power may leave where an entry was to be
            if length_checksum != _length_checksum(length):
                raise self._damaged(f"the length at byte {at} does not fit its checksum")
            if at + _HEAD.size + length > size:
                break
            entry = file.read(length)
            if zlib.crc32(entry) != checksum:
                raise self._damaged(f"the entry at byte {at} does not fit its checksum")
            at += _HEAD.size + length
            first = first or at
            yield entry
        if not first:
            raise self._damaged("it holds no whole entry")
        self._whole_bytes, self._first_bytes = at, first

    def append(self, entry: bytes) -> None:
        """Add an entry. Raises OSError; then the file holds what it held before."""
        framed = _framed(entry)
        self._folder.grow(len(framed), spared=True)
        with self._folder.writing():
            descriptor = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.ftruncate(descriptor, self._whole_bytes)
                try:
                    _write(descriptor, framed, self._whole_bytes)
                    os.fdatasync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, self._whole_bytes)
                    raise
            finally:
                os.close(descriptor)
        self._whole_bytes += len(framed)

    def begin(self, entry: bytes) -> None:
        """Replace the whole file, at once, by one with this entry.

        Raises OSError; then it is to be read again: either of the two may be there.
        """
        framed = _MAGIC + _framed(entry)
        self._folder.grow(len(framed) - bytes_below(self.path), spared=True)
        made = self._folder.unfinished()
        try:
            with made.open("xb") as file:
                file.write(framed)
                file.flush()
                os.fsync(file.fileno())
            with self._folder.writing():
                make_folder(self.path.parent)
                made.replace(self.path)
                sync_folder(self.path.parent)
        except OSError:
            made.unlink(missing_ok=True)
            raise
        self._whole_bytes = self._first_bytes = len(framed)

    def touch(self) -> None:
        """Say that the session is in use. Raises OSError."""
        with self._folder.writing():
            os.utime(self.path)

    def _damaged(self, why: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            f"the journal {self.path} is damaged: {why}. Open the session with fresh=True, and restore a checkpoint"
        )


def _framed(entry: bytes) -> bytes:
    """Raises OSError for what no journal may hold."""
    if len(entry) > _ENTRY_BYTES:
        raise OSError(errno.EFBIG, f"a journal's entry may have {_ENTRY_BYTES} bytes, this one has {len(entry)}")
    return _HEAD.pack(len(entry), _length_checksum(len(entry)), zlib.crc32(entry)) + entry


def _length_checksum(length: int) -> int:
    return zlib.crc32(length.to_bytes(4, "little"))


def _is_zeros(file: BufferedReader) -> bool:
    while piece := file.read(_PIECE_BYTES):
        if any(piece):
            return False
    return True


def _write(descriptor: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written
