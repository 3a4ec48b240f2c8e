"""A session's record on disk: an append-only file of entries, each with its length and a checksum.

The entry of a call is on the disk before the server answers the call. An incomplete last entry, of a server that was
killed, belongs to a call without an answer and is cut off. Any other entry that does not match its checksum is an
error.
"""

import errno
import os
import struct
import time
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from mixserve.disk import sync
from mixserve.sessions.storage import StateFolder, bytes_below, make_folder, open_regular
from mixserve_client.errors import CorruptCheckpoint

_MAGIC = b"mixserve journal 1\n"
_HEAD = struct.Struct("<III")  # length of the entry, CRC-32 of the length, CRC-32 of the entry
# A journal is rewritten as one entry when it exceeds _COMPACTED_BYTES plus 8 times its first entry, or plus that entry
# and _LONGER_BYTES.
_COMPACTED_BYTES = 256 << 10
_LONGER_BYTES = 128 << 20
_ENTRY_BYTES = 256 << 20
_BYTES = 1 << 30  # more than a journal can grow to under the limits above
_PIECE_BYTES = 1 << 20
_TOUCH_EVERY_S = 3600.0


class Journal:
    """One journal file. Not thread-safe: its session is used by one thread at a time."""

    def __init__(self, path: Path, folder: StateFolder):
        self.path = path
        self._folder = folder
        self._whole_bytes = 0
        self._first_bytes = 0

    @property
    def is_long(self) -> bool:
        """Whether the file is many times larger than needed, so that it is time to rewrite it."""
        first = self._first_bytes
        return self._whole_bytes > _COMPACTED_BYTES + min(8 * first, first + _LONGER_BYTES)

    def read(self) -> list[bytes]:
        """The entries. Raises FileNotFoundError, OSError, and CorruptCheckpoint if the file is damaged."""
        return list(self.entries())

    def entries(self) -> Iterator[bytes]:
        """Iterates over the entries. Take all of them before `append`, which needs their length. Raises as `read`."""
        with open_regular(self.path, _BYTES) as (file, size):
            yield from self._entries(file, size)

    def _entries(self, file: BufferedReader, size: int) -> Iterator[bytes]:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise self._damage_error("it does not start like a journal")
        at, first = len(_MAGIC), 0
        while at + _HEAD.size <= size and len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, length_checksum, checksum = _HEAD.unpack(head)
            if not length and not any(head) and _is_zeros(file):
                break  # a loss of power may leave zeros in place of an entry
            # The length has its own checksum: a wrong length would make a damaged file look like a cut-off one, and the
            # entries after it would be lost silently.
            if length_checksum != _length_checksum(length):
                raise self._damage_error(f"the length at byte {at} does not match its checksum")
            if at + _HEAD.size + length > size:  # cut off
                break
            entry = file.read(length)
            if zlib.crc32(entry) != checksum:
                raise self._damage_error(f"the entry at byte {at} does not match its checksum")
            at += _HEAD.size + length
            first = first or at
            yield entry
        if not first:
            raise self._damage_error("it has no complete entry")
        self._whole_bytes, self._first_bytes = at, first

    def append(self, entry: bytes) -> None:
        """Append an entry. Raises OSError; then the file is unchanged."""
        framed = _frame(entry)
        self._folder.grow(len(framed), spared=True)
        with self._folder.writing():
            descriptor = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # What lies after the last complete entry is half an entry of a killed server: this entry replaces it.
                os.ftruncate(descriptor, self._whole_bytes)
                try:
                    _write(descriptor, framed, self._whole_bytes)
                    os.fdatasync(descriptor)
                except OSError:  # a full disk, say: half an entry must not stay
                    os.ftruncate(descriptor, self._whole_bytes)
                    raise
            finally:
                os.close(descriptor)
        self._whole_bytes += len(framed)

    def begin(self, entry: bytes) -> None:
        """Replace the file atomically with one that has only this entry.

        Raises OSError; read the file again then: it may be the old or the new one.
        """
        framed = _MAGIC + _frame(entry)
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
                sync(self.path.parent)  # or a loss of power could undo the rename
        except OSError:
            made.unlink(missing_ok=True)
            raise
        self._whole_bytes = self._first_bytes = len(framed)

    def touch(self) -> None:
        """Mark the session as in use. Raises OSError."""
        with self._folder.writing():  # the age of a journal is that of its modification time
            os.utime(self.path)

    def touch_if_old(self) -> None:
        """As `touch`, unless it was written or touched within the last hour."""
        if time.time() - self.path.stat().st_mtime >= _TOUCH_EVERY_S:
            self.touch()

    def _damage_error(self, why: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(
            f"the journal {self.path} is damaged: {why}. Open the session with fresh=True, and restore a checkpoint"
        )


def _frame(entry: bytes) -> bytes:
    """`entry` after its head. Raises OSError if it is too large."""
    if len(entry) > _ENTRY_BYTES:
        raise OSError(
            errno.EFBIG, f"an entry of a journal may have at most {_ENTRY_BYTES} bytes, this one has {len(entry)}"
        )
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
