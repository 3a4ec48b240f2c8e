"""Flat tokens with marked ends of documents -> records of whole documents, packed together and padded."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from mixserve.sources.packing import pack_best_fit
from mixserve.sources.pieces import PADDING, Pieces
from mixserve.sources.token_windows import Part, refuse_too_few

Long = Literal["split", "cut", "refuse"]

_CHUNK = 1 << 19  # tokens that are searched at a time; these and the result of comparing them stay in the CPU's cache


def pack_documents(parts: Sequence[Part], length: int, *, eod: int, long: Long, pad: int, per_part: bool) -> Pieces:
    """Records of `length` tokens; with `per_part`, no record has documents of two parts.

    Raises ValueError, which says where, for a document that is longer if `long` is "refuse".
    """
    firsts, sizes, counts = list[np.ndarray](), list[np.ndarray](), list[int]()
    begin = 0
    for part in parts:
        part_firsts, part_sizes = _pieces(part, length, eod, long)
        firsts.append(part_firsts + begin)
        sizes.append(part_sizes)
        counts.append(len(part_sizes))
        begin += len(part.tokens)
    all_firsts, all_sizes = np.concatenate(firsts), np.concatenate(sizes)
    if not len(all_sizes):
        refuse_too_few(parts, 1)
    groups = np.cumsum([0, *counts]) if per_part else np.array([0, len(all_sizes)])
    packed = [
        _pad(all_firsts[low:high], all_sizes[low:high], length)
        for low, high in zip(groups[:-1].tolist(), groups[1:].tolist(), strict=True)
        if low < high
    ]
    return Pieces(
        parts,
        np.concatenate([firsts for firsts, _ in packed]),
        np.concatenate([sizes for _, sizes in packed]),
        length=length,
        stride=length,
        pad=pad,
    )


def _pieces(
    part: Part, length: int, eod: int, long: Long
) -> tuple[Int[np.ndarray, " pieces"], Int[np.ndarray, " pieces"]]:
    """First token and number of tokens of every document of a part, or of its pieces of at most `length`."""
    ends = np.concatenate([*_ends(part.tokens, eod), [len(part.tokens)]])
    firsts = np.concatenate([[0], ends[:-1]])
    sizes = ends - firsts
    firsts, sizes = firsts[sizes > 0], sizes[sizes > 0]  # the last document may be empty
    longest = np.flatnonzero(sizes > length)[:1]
    if len(longest) and long == "refuse":
        at = int(longest[0])
        raise ValueError(
            f"the document at {part.label}, token {firsts[at]:,}, has {sizes[at]:,} tokens, more than sequence_length "
            f"{length:,}: say long: split or cut; or is eod the right id?"
        )
    if long == "cut":
        return firsts, np.minimum(sizes, length)
    counts = -(-sizes // length)
    number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)  # of a piece in its document
    return np.repeat(firsts, counts) + number * length, np.minimum(np.repeat(sizes, counts) - number * length, length)


def _ends(tokens: np.ndarray, eod: int) -> Iterator[np.ndarray]:
    for first in range(0, len(tokens), _CHUNK):
        yield np.flatnonzero(tokens[first : first + _CHUNK] == eod) + (first + 1)


def _pad(
    firsts: Int[np.ndarray, " pieces"], sizes: Int[np.ndarray, " pieces"], length: int
) -> tuple[Int[np.ndarray, " padded"], Int[np.ndarray, " padded"]]:
    """The pieces by record, and after those of each record the padding that it needs."""
    order, counts = pack_best_fit(sizes, length)
    firsts, sizes = firsts[order], sizes[order]
    ends = np.cumsum(counts)
    missing = length - np.diff(np.append(0, np.cumsum(sizes)[ends - 1]))
    return np.insert(firsts, ends, PADDING), np.insert(sizes, ends, missing)
