"""TFRecord files -> a source. An index of each file, which is kept, has the byte at which every record begins."""

import logging
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixserve.error_boundary import WrongRecord
from mixserve.sources.crc32c import crcs_of_words, load_crc, masked
from mixserve.sources.extents import Extents
from mixserve.sources.fields import Served
from mixserve.sources.kept_index import Index, digest_index, kept_index
from mixserve.sources.magic import GZIP
from mixserve.sources.open_file import OpenFile
from mixserve.sources.record_files import RecordFilesSource

_logger = logging.getLogger("mixserve")

# A record: its length (8 bytes), the checksum of the length (4), the data, the checksum of the data (4).
_LENGTH = struct.Struct("<Q")
_HEAD_BYTES, _TAIL_BYTES = 12, 4
# Records that are longer are found by reading their heads alone.
_BLOCK_BYTES, _LONG_BYTES = 1 << 20, 64 << 10
_COMPRESSED = {GZIP: "GZIP", b"\x78\x01": "ZLIB", b"\x78\x9c": "ZLIB", b"\x78\xda": "ZLIB"}


class TFRecordSource(RecordFilesSource):
    """Record r is the record r of the files, one after another, decoded as `record` says.

    Reads each file once, in blocks or by heads, and keeps an index of it.
    """

    kind = "tfrecord"

    @staticmethod
    def open_records(paths: Sequence[Path]) -> "TFRecords":
        return TFRecords(paths)


class TFRecords:
    """The records of TFRecord files, as bytes."""

    def __init__(self, paths: Sequence[Path]):
        files = [OpenFile(path) for path in paths]
        # Of each file: where records begin, and at last the size of the file.
        indices = [kept_index("tfrecord/index", file, index_tfrecord) for file in files]
        self._records, self._heads = Extents(files, indices), [digest_index(index) for index in indices]
        self._crc = load_crc()
        if self._crc is None:
            _logger.warning(
                "the checksums of the records of %s are not checked: pip install 'mixserve[tfrecord]'",
                files[0].path,
            )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, record_ids: Sequence[int]) -> list[bytes]:
        stored = self._records.read(record_ids)
        found = [record[_HEAD_BYTES:-_TAIL_BYTES] for record in stored]
        lengths = _numbers([record[:8] for record in stored], "<u8")
        is_whole = lengths == np.fromiter(map(len, found), np.uint64, len(found))
        is_right = is_whole
        if self._crc is not None:
            crcs = _numbers([record[-_TAIL_BYTES:] for record in stored], "<u4")
            is_right = is_whole & (masked(np.fromiter(map(self._crc, found), np.uint32, len(found))) == crcs)
        if not is_right.all():
            worst = int(np.argmin(is_right))
            file, row, _ = self._records.place(record_ids[worst])
            file.check_unchanged()
            what = "its checksum is not that of its data" if is_whole[worst] else "its length is not what it was"
            raise WrongRecord(f"{file.path}, record {row:,}: the record is damaged: {what}")
        return found

    def locate(self, record_id: int) -> str:
        file, row, byte = self._records.place(record_id)
        return f"{file.path}, record {row:,}, byte {byte:,}"

    def files(self) -> Sequence[OpenFile]:
        return self._records.files

    def heads(self) -> Sequence[bytes]:
        return self._heads

    def use(self, fields: Sequence[Served]) -> None:
        """A record is read whole, whichever fields are served."""

    def announce(self, record_ids: Sequence[int]) -> None:
        self._records.announce(record_ids)


def _numbers(parts: list[bytes], dtype: str) -> np.ndarray:
    """A number of each of these bytes; shorter ones are filled up."""
    size = np.dtype(dtype).itemsize
    return np.frombuffer(b"".join([part.ljust(size, b"\0") for part in parts]), dtype)


def index_tfrecord(file: OpenFile) -> Index:
    """Where the records of the file begin, and at last its size.

    Checks the heads of all records. Raises ValueError, which names the file and the record.
    """
    parts: list[Index] = []
    at = count = 0
    is_long = False
    while at < file.size:
        block = file.read(at, min(file.size - at, _HEAD_BYTES if is_long else _BLOCK_BYTES))
        begins = _hop(block)
        if not begins:
            raise ValueError(f"{file.path} ends within the record {count:,}: it is cut")
        _check_heads(file, block, begins, at, count)
        *begins, end = begins
        parts.append(np.array(begins, np.int64) + at)
        count += len(begins)
        is_long, at = end - begins[-1] > _LONG_BYTES, at + end
    if at > file.size:
        raise ValueError(f"{file.path} ends within the record {count - 1:,}: it is cut")
    return np.concatenate([*parts, np.array([at], np.int64)])


def _hop(block: bytes) -> list[int]:
    """Where records begin whose heads are whole in `block`, and at last where the record after them does; empty if
    there are none."""
    begins: list[int] = []
    unpack, last = _LENGTH.unpack_from, len(block) - _HEAD_BYTES
    at = 0
    while at <= last:
        begins.append(at)
        at += unpack(block, at)[0] + _HEAD_BYTES + _TAIL_BYTES
    return [*begins, at] if begins else []


def _check_heads(file: OpenFile, block: bytes, begins: list[int], at: int, count: int) -> None:
    data = np.frombuffer(block, np.uint8)
    heads = data[np.array(begins[:-1])[:, None] + np.arange(_HEAD_BYTES)]
    wrong = np.flatnonzero(crcs_of_words(heads[:, :8]) != heads[:, 8:].copy().view("<u4")[:, 0])
    if len(wrong) == 0:
        return
    first = int(wrong[0])
    compressed = _COMPRESSED.get(block[:2]) if at == 0 and first == 0 else None
    if compressed:
        raise ValueError(
            f"{file.path} is a TFRecord file compressed as a whole ({compressed}), or another one: records in the "
            "middle cannot be read. Decompress it, or write it again without compression"
        )
    if at == 0 and first == 0:
        raise ValueError(f"{file.path} is not a TFRecord file: it does not begin with a length and its checksum")
    raise ValueError(
        f"{file.path}, record {count + first:,}: the file is damaged at byte {at + begins[first]:,}: the checksum of "
        "the length is wrong"
    )
