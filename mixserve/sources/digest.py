"""Arrays -> a digest of their content: exact if they are small, fast if they are large."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

_WHOLE_BYTES = 64 << 20
_PIECES, _PIECE_BYTES = 64, 64 << 10


def digest_blocks(blocks: Iterable[Mapping[str, np.ndarray]]) -> bytes:
    """The SHA-256 of the arrays' names, dtypes, shapes and bytes.

    Of more than 64 MiB in all, it covers 64 pieces of 64 KiB, spread evenly from the first byte to the last.
    """
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
    """The bytes [first, first + size) of all arrays, one after another, in parts of one or more rows."""
    at = 0
    for array in arrays:
        low, high = max(first - at, 0), min(first + size - at, array.nbytes)
        at += array.nbytes
        if low < high:
            row_bytes = array.nbytes // len(array)
            first_row, end_row = low // row_bytes, -(-high // row_bytes)
            step = max(1, _PIECE_BYTES // row_bytes)  # a few rows at a time: the array may be larger than memory
            for row in range(first_row, end_row, step):
                part = np.ascontiguousarray(array[row : min(row + step, end_row)]).tobytes()
                yield part[max(low - row * row_bytes, 0) : high - row * row_bytes]
