"""Arrays or files -> a digest of their content: exact if they are small, fast if they are large."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixserve.sources.open_file import OpenFile

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
    for first, size in spread(sum(array.nbytes for _, array in arrays)):
        for part in _bytes([array for _, array in arrays], first, size):
            digest.update(part)
    return digest.digest()


def digest_files(files: Sequence[OpenFile], options: Mapping[str, Any], heads: Sequence[bytes] = ()) -> bytes:
    """The SHA-256 of `options`, of the files' sizes, of `heads` and of the files' bytes, in this order.

    `options` are those that change records, and counts that the files do not show, as JSON has them. `heads` are the
    parts of the formats that say much in few bytes, such as indices and footers. Never put in paths or times: replicas
    have others. Of files of more than 64 MiB in all, the digest covers the pieces that `spread` says.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    digest.update(f" {[file.size for file in files]} {[len(head) for head in heads]} ".encode())
    for head in heads:
        digest.update(head)
    ends = np.cumsum([0, *(file.size for file in files)])
    for first, size in spread(int(ends[-1])):
        while size > 0:
            number = int(np.searchsorted(ends, first, side="right")) - 1
            part = min(size, int(ends[number + 1]) - first, _PIECE_BYTES)
            digest.update(files[number].read(first - int(ends[number]), part))
            first, size = first + part, size - part
    return digest.digest()


def spread(total: int, unit: int = 1) -> list[tuple[int, int]]:
    """Pieces (first, size) of `total` bytes: all of them in one, or if they are more than 64 MiB, 64 pieces of 64 KiB,
    spread evenly from the first byte to the last. With a larger `unit`, all figures count units of so many bytes."""
    if total * unit <= _WHOLE_BYTES:
        return [(0, total)]
    size = max(1, _PIECE_BYTES // unit)
    return [((total - size) * i // (_PIECES - 1), size) for i in range(_PIECES)]


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
