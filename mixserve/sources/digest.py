"""Arrays -> a digest of their content that is exact for small ones and quick for large ones."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

_WHOLE_BYTES = 64 << 20
_PIECES, _PIECE_BYTES = 64, 64 << 10


def digest_blocks(blocks: Iterable[Mapping[str, np.ndarray]]) -> bytes:
    """sha256 over all bytes of up to 64 MiB, beyond that over 64 spread pieces of 64 KiB, and over all sizes."""
    blocks = list(blocks)
    total = sum(array.nbytes for block in blocks for array in block.values())
    digest = hashlib.sha256()
    for block in blocks:
        for name in sorted(block):
            array = block[name]
            digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
            for piece in _pieces(array, whole=total <= _WHOLE_BYTES):
                digest.update(piece)
    return digest.digest()


def _pieces(array: np.ndarray, *, whole: bool) -> Iterable[bytes]:
    rows = len(array)
    step = max(1, _PIECE_BYTES * rows // max(1, array.nbytes))
    last = max(0, rows - step)
    firsts = range(0, rows, step) if whole else sorted({last * i // (_PIECES - 1) for i in range(_PIECES)})
    for first in firsts:
        piece = np.ascontiguousarray(array[first : first + step]).tobytes()
        yield piece if whole else piece[:_PIECE_BYTES]
