"""Arrays -> a digest of their content that is exact for small ones and quick for large ones."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

_WHOLE_BYTES = 64 << 20
_PIECES, _PIECE_BYTES = 64, 64 << 10


def digest_blocks(blocks: Iterable[Mapping[str, np.ndarray]]) -> bytes:
    """sha256 over all bytes of up to 64 MiB, beyond that over 64 spread pieces of 64 KiB, and over all sizes."""
    arrays = [(name, block[name]) for block in blocks for name in sorted(block)]
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
    total = sum(array.nbytes for _, array in arrays)
    last = total - _PIECE_BYTES
    pieces = (
        [(0, total)] if total <= _WHOLE_BYTES else [(last * i // (_PIECES - 1), _PIECE_BYTES) for i in range(_PIECES)]
    )
    for first, size in pieces:
        for part in _bytes([array for _, array in arrays], first, size):
            digest.update(part)
    return digest.digest()


def _bytes(arrays: Sequence[np.ndarray], first: int, size: int) -> Iterator[bytes]:
    """The bytes [first, first + size) of all arrays in a row, in rows that lie whole or in part there."""
    at = 0
    for array in arrays:
        low, high = max(first - at, 0), min(first + size - at, array.nbytes)
        at += array.nbytes
        if low < high:
            row_bytes = array.nbytes // len(array)
            first_row, end_row = low // row_bytes, -(-high // row_bytes)
            step = max(1, _PIECE_BYTES // row_bytes)
            for row in range(first_row, end_row, step):
                part = np.ascontiguousarray(array[row : min(row + step, end_row)]).tobytes()
                yield part[max(low - row * row_bytes, 0) : high - row * row_bytes]
