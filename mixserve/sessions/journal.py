"""A session's record on disk: an append-only file of entries, each with its length and a checksum.

An entry is written, and on the disk, before the call that it stands for is answered. What a killed server wrote only
half of was never answered, and is cut off; anything else that does not fit its checksum is an error.
"""

import os
import struct
import zlib
from pathlib import Path

from mixserve.sessions.storage import StateFolder, make_folder, sync_folder
from mixserve_client.errors import CorruptCheckpoint

_MAGIC = b"mixserve journal 1\n"
_HEAD = struct.Struct("<III")  # length of the entry, CRC-32 of the length, CRC-32 of the entry
_COMPACTED_BYTES = 256 << 10


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
        return self._whole_bytes > _COMPACTED_BYTES + 8 * self._first_bytes

    def read(self) -> list[bytes]:
        """The entries. Raises FileNotFoundError, OSError, and CorruptCheckpoint where the file is damaged."""
        data = self.path.read_bytes()
        if not data.startswith(_MAGIC):
            raise self._damaged("it does not begin as a journal does")
        entries, at = list[bytes](), len(_MAGIC)
        while at + _HEAD.size <= len(data):
            length, length_checksum, checksum = _HEAD.unpack_from(data, at)
            begin, end = at + _HEAD.size, at + _HEAD.size + length
            if not length and not any(data[at:]):
                break  # zeros, which a machine that lost power may leave where an entry was to be
            if length_checksum != _length_checksum(length):
                raise self._damaged(f"the length at byte {at} does not fit its checksum")
            if end > len(data):
                break
            if zlib.crc32(data[begin:end]) != checksum:
                raise self._damaged(f"the entry at byte {at} does not fit its checksum")
            entries.append(data[begin:end])
            at = end
            self._first_bytes = self._first_bytes or at
        if not entries:
            raise self._damaged("it holds no whole entry")
        self._whole_bytes = at
        return entries

    def append(self, entry: bytes) -> None:
        """Add an entry. Raises OSError; then the file holds what it held before."""
        framed = _framed(entry)
        with self._folder.writing():
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
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
    return _HEAD.pack(len(entry), _length_checksum(len(entry)), zlib.crc32(entry)) + entry


def _length_checksum(length: int) -> int:
    return zlib.crc32(length.to_bytes(4, "little"))


def _write(descriptor: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written
