"""CRC-32C as TFRecord files have it, masked: of heads in NumPy, of records by google-crc32c."""

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78
_MASK = 0xA282EAD8


def crcs_of_words(words: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """The masked checksums of rows of eight bytes."""
    tables = _tables()
    mixed = words ^ np.array([0xFF] * 4 + [0] * 4, np.uint8)
    crc = np.zeros(len(words), np.uint32)
    for column in range(8):
        crc ^= tables[7 - column][mixed[:, column]]
    crc ^= np.uint32(0xFFFFFFFF)
    return masked(crc)


def load_crc() -> Callable[[bytes], int] | None:
    """The function bytes -> checksum, not masked; None if google-crc32c is not installed."""
    try:
        from google_crc32c import value
    except ImportError:
        return None
    return value


def masked(crc: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Checksums as they are stored."""
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK)


@cache
def _tables() -> npt.NDArray[np.uint32]:
    """Row k: the checksums of all bytes that k zero bytes follow."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, first >> np.uint32(1) ^ np.uint32(_POLYNOMIAL), first >> np.uint32(1))
    tables = [first]
    for _ in range(7):
        last = tables[-1]
        tables.append(last >> np.uint32(8) ^ first[last & np.uint32(0xFF)])
    return np.array(tables)
