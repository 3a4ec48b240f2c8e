"""Pairs of `.bin` and `.idx` files of Megatron-LM -> their tokens, and where their sequences and documents begin.

An `.idx` file is the magic, u64 version, u8 code of the dtype, u64 number of sequences S, u64 number of entries D, and
then the arrays i32[S] lengths, i64[S] first bytes in the `.bin` file, i64[D] first sequences of documents and the end,
and for multimodal data i8[S] modes. All numbers are little-endian. Nothing is aligned.
"""

import struct
from itertools import pairwise
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from mixserve.sources.digest import digest_files
from mixserve.sources.magic import MEGATRON_INDEX
from mixserve.sources.open_file import OpenFile
from mixserve_client.schema.text import show

_OLD_MAGIC = b"TNTIDX\0\0"
_HEAD = struct.Struct("<9sQBQQ")
_DTYPES = {
    code: np.dtype(name)
    for code, name in enumerate(("u1", "i1", "i2", "i4", "i8", "f8", "f4", "u2"), start=1)
}  # fmt: skip
_CHUNK = 1 << 20  # sequences that are checked at a time, so that memory stays small


class MegatronFiles(NamedTuple):
    """An opened pair. The arrays of the index are views of the file, and not aligned."""

    label: str
    tokens: Shaped[np.ndarray, " tokens"]
    lengths: Int32[np.ndarray, " sequences"]
    first_bytes: Int64[np.ndarray, " sequences"]
    documents: Int64[np.ndarray, " entries"]
    is_contiguous: bool  # whether every sequence begins where the one before it ends
    digest: bytes  # of the index

    @property
    def firsts(self) -> Int64[np.ndarray, " sequences"]:
        """The first token of every sequence."""
        return self.first_bytes.astype(np.int64) // self.tokens.itemsize

    def document_of(self) -> Int64[np.ndarray, " sequences"] | None:
        """The number of every sequence's document, None if every sequence is one."""
        sequences = np.arange(len(self.lengths) + 1)
        if np.array_equal(self.documents, sequences):
            return None
        return np.searchsorted(self.documents.astype(np.int64), sequences[:-1], side="right")


def open_megatron(prefix: str | PathLike[str]) -> MegatronFiles:
    """The files `prefix`.bin and `prefix`.idx.

    Raises ValueError, which names the file, if the index is cut, garbled, or of multimodal data, or does not belong to
    the `.bin` file; OSError if a file cannot be read.
    """
    prefix = prefix_of(prefix)
    index, data = OpenFile(f"{prefix}.idx"), OpenFile(f"{prefix}.bin")
    dtype, sequences, entries = _read_head(index)
    mapped = index.map()
    sizes = (4 * sequences, 8 * sequences, 8 * entries)
    bounds = pairwise([_HEAD.size, *(_HEAD.size + sum(sizes[:number]) for number in (1, 2, 3))])
    lengths, first_bytes, documents = (
        mapped[low:high].view(kind) for (low, high), kind in zip(bounds, ("<i4", "<i8", "<i8"), strict=True)
    )
    is_contiguous = _check_sequences(index, data, lengths, first_bytes, dtype)
    if entries and (documents[0] < 0 or documents[-1] > sequences or (documents[1:] < documents[:-1]).any()):
        raise ValueError(
            f"{index.path} is garbled: its documents begin at {show(documents[:8].tolist())} of {sequences} sequences"
        )
    tokens = data.map().view(dtype)
    digest = digest_files([index], {})
    return MegatronFiles(str(data.path), tokens, lengths, first_bytes, documents, is_contiguous, digest)


def prefix_of(path: str | PathLike[str]) -> str:
    """`path` without `.bin` or `.idx`, if it ends so."""
    text = fspath(path)
    return text[:-4] if Path(text).suffix in (".bin", ".idx") else text


def _read_head(index: OpenFile) -> tuple[np.dtype, int, int]:
    """The dtype of tokens, and the numbers of sequences and of entries for documents."""
    head = index.read_head(_HEAD.size)
    if head.startswith(_OLD_MAGIC):
        raise ValueError(f"{index.path} is an index of Megatron's old format; write it again with preprocess_data.py")
    if not head.startswith(MEGATRON_INDEX[: len(head)]) or not head:
        raise ValueError(f"{index.path} is no index of Megatron: it begins with {show(head[:16])}")
    if len(head) < _HEAD.size:
        raise ValueError(f"{index.path} was cut: it has {index.size} bytes, and the head alone has {_HEAD.size}")
    _, version, code, sequences, entries = _HEAD.unpack(head)
    if version != 1 or code not in _DTYPES:
        raise ValueError(f"{index.path} must have the version 1 and a dtype in 1..8, got {version} and {code}")
    size = _HEAD.size + 12 * sequences + 8 * entries
    if index.size == size + sequences and sequences:
        raise ValueError(f"{index.path} has modes of sequences: multimodal data cannot be served")
    if index.size != size:
        raise ValueError(
            f"{index.path} was cut or is garbled: {sequences:,} sequences and {entries:,} entries for documents make "
            f"{size:,} bytes, and it has {index.size:,}"
        )
    return _DTYPES[code], sequences, entries


def _check_sequences(
    index: OpenFile, data: OpenFile, lengths: np.ndarray, first_bytes: np.ndarray, dtype: np.dtype
) -> bool:
    """Whether the sequences are contiguous. Raises ValueError if they do not fill the `.bin` file."""
    end, is_contiguous, next_byte = 0, True, 0
    for chunk in range(0, len(lengths), _CHUNK):
        sizes = lengths[chunk : chunk + _CHUNK].astype(np.int64) * dtype.itemsize
        firsts = first_bytes[chunk : chunk + _CHUNK].astype(np.int64)
        wrong = np.flatnonzero((sizes < 0) | (firsts < 0) | (firsts > 1 << 62) | (firsts % dtype.itemsize != 0))
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"{index.path} is garbled: its sequence {chunk + at:,} has {lengths[chunk + at]:,} tokens of {dtype} "
                f"from byte {firsts[at]:,} on"
            )
        ends = firsts + sizes
        end = max(end, int(ends.max()))
        is_contiguous &= bool(firsts[0] == next_byte and (firsts[1:] == ends[:-1]).all())
        next_byte = int(ends[-1])
    if end != data.size:
        raise ValueError(
            f"{data.path} has {data.size:,} bytes, and {index.path} describes {end:,}: one of them was cut, or they do "
            "not belong together"
        )
    return is_contiguous
