"""Records of the formats that tests write: tf.train.Example by its documented bytes, and ArrayRecord files."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def example(features: Mapping[str, Any]) -> bytes:
    """The Example of bytes, of lists of bytes, of integers or of floats; None is a feature without a kind."""
    entries = [
        _field(1, _field(1, name.encode()) + _field(2, b"" if value is None else _feature(value)))
        for name, value in features.items()
    ]
    return _field(1, b"".join(entries))


def _feature(value: Any) -> bytes:
    values: list[Any] = [value] if isinstance(value, bytes | int | float) else list(value)
    if values and isinstance(values[0], bytes):
        return _field(1, b"".join(_field(1, one) for one in values))
    if values and isinstance(values[0], float | np.floating):
        return _field(2, _field(1, struct.pack(f"<{len(values)}f", *values)))
    return _field(3, _field(1, b"".join(_varint(int(one)) for one in values)) if values else b"")


def write_array_record(path: Path, records: Iterable[bytes], options: str = "group_size:1") -> Path:
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path


def taken(source: Any, record_ids: Sequence[int]) -> dict[str, np.ndarray]:
    return source.take(np.asarray(record_ids))


def tfrecord(records: Iterable[bytes]) -> bytes:
    """The TFRecord file of these records."""
    parts: list[bytes] = []
    for record in records:
        length = struct.pack("<Q", len(record))
        parts += [length, _masked_crc(length), record, _masked_crc(record)]
    return b"".join(parts)


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
