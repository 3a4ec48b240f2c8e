"""Records that consist of pieces of flat arrays, such as documents in another order, or packed ones."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mixserve.sources.open_file import OpenFile, file_of
from mixserve.sources.segments import Positions, SegmentIds, segments_from
from mixserve.sources.source import RecordIds
from mixserve.sources.token_windows import Part

PADDING = -1  # in place of a piece's first token


class Pieces:
    """Windows over pieces, one after another. Piece i is `sizes[i]` tokens from the token `firsts[i]` on, counted
    through all `parts`, and lies in one part; or so many times `pad` if `firsts[i]` is PADDING.

    Record r is the pieces' tokens [r*S, r*S + L); L is `length` and S `stride`. `groups` are numbers of pieces whose
    windows are cut apart: the windows of each begin at its first token, and end in it. Pieces of equal `documents` that
    follow one another are one segment; by default every piece is one.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        firsts: Int[np.ndarray, " pieces"],
        sizes: Int[np.ndarray, " pieces"],
        *,
        length: int,
        stride: int,
        groups: Sequence[int] | None = None,
        documents: Int[np.ndarray, " pieces"] | None = None,
        pad: int = 0,
    ):
        self._parts = [Part(label, np.asarray(tokens)) for label, tokens in parts]
        self._part_starts = np.cumsum([0, *(len(part.tokens) for part in parts)])
        self.length, self.stride, self._pad = length, stride, pad
        group_ends = np.cumsum([0, *([len(firsts)] if groups is None else groups)])
        self._begins = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._group_begins = self._begins[group_ends]
        windows = (np.diff(self._group_begins) - length) // stride + 1
        self._records = np.cumsum([0, *np.maximum(windows, 0).tolist()])
        # A piece without tokens would be a segment without tokens.
        kept = np.flatnonzero(np.asarray(sizes) > 0)
        self._begins = np.append(self._begins[kept], self._begins[-1])
        self._firsts = np.asarray(firsts, np.int64)[kept]
        self._documents = None if documents is None else documents[kept]

    def __len__(self) -> int:
        return int(self._records[-1])

    def take(
        self, record_ids: RecordIds, dtype: np.dtype, *, segments: bool
    ) -> tuple[np.ndarray, tuple[SegmentIds, Positions] | None]:
        """The records: (size, length) of `dtype`, and their `segments` if these are wanted."""
        shape = len(record_ids), self.length
        pieces, places, sources, sizes = self._find(record_ids)
        out = np.empty(shape, dtype)
        self._copy(out.reshape(-1), places, sources, sizes)
        if not segments:
            return out, None
        continues = None
        if self._documents is not None:
            documents = self._documents[pieces]
            continues = np.append(False, documents[1:] == documents[:-1])
        return out, segments_from(places, shape, continues, sources < 0)

    def locate(self, record_id: int) -> str:
        """The part, and the token in it at which the record begins."""
        if not 0 <= record_id < len(self):
            raise IndexError(f"record_id must be below {len(self)}, got {record_id}")
        _, _, sources, _ = self._find(np.array([record_id]))
        number, token = self._find_part(sources[:1])
        return f"{self._parts[int(number[0])].label}, token {int(token[0]):,}"

    @property
    def arrays(self) -> list[np.ndarray]:
        """The tokens of the parts."""
        return [part.tokens for part in self._parts]

    def locate_token(self, number: int) -> str:
        """The part of a token that is counted through all parts, and where in it the token is."""
        part, token = self._find_part(np.array([number]))
        return f"{self._parts[int(part[0])].label}, token {int(token[0]):,}"

    def files(self) -> list[OpenFile]:
        """The files that the parts are views of."""
        return [found[0] for found in map(file_of, self.arrays) if found]

    def prefetch(self, record_ids: RecordIds) -> None:
        """Ask the system to read these records soon."""
        _, _, sources, sizes = self._find(record_ids)
        kept = sources >= 0
        numbers, tokens = self._find_part(sources[kept])
        found = {number: file_of(self._parts[number].tokens) for number in np.unique(numbers).tolist()}
        for number, token, size in zip(numbers.tolist(), tokens.tolist(), sizes[kept].tolist(), strict=True):
            if (at := found[number]) is not None:
                file, offset = at
                item_bytes = self._parts[number].tokens.itemsize
                file.announce(offset + token * item_bytes, size * item_bytes)

    def _find(self, record_ids: RecordIds) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of every part of a piece in the records: the piece, its flat place in the records, its first token and its
        number of tokens."""
        groups = np.searchsorted(self._records, record_ids, side="right") - 1
        begins = self._group_begins[groups] + (np.asarray(record_ids) - self._records[groups]) * self.stride
        first = np.searchsorted(self._begins, begins, side="right") - 1
        last = np.searchsorted(self._begins, begins + self.length, side="left")
        counts = last - first
        rows = np.repeat(np.arange(len(begins)), counts)
        pieces = np.arange(len(rows)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        low = np.maximum(self._begins[pieces], begins[rows])
        high = np.minimum(self._begins[pieces + 1], begins[rows] + self.length)
        firsts = self._firsts[pieces]
        sources = np.where(firsts < 0, PADDING, firsts + low - self._begins[pieces])
        return pieces, rows * self.length + low - begins[rows], sources, high - low

    def _copy(self, out: np.ndarray, places: np.ndarray, sources: np.ndarray, sizes: np.ndarray) -> None:
        # A loop over pieces and not over tokens: slices are copied faster than NumPy gathers single tokens.
        numbers, tokens = self._find_part(np.maximum(sources, 0))
        arrays = self.arrays
        ends, token_ends = (places + sizes).tolist(), (tokens + sizes).tolist()
        for place, end, source, number, token, token_end in zip(
            places.tolist(), ends, sources.tolist(), numbers.tolist(), tokens.tolist(), token_ends, strict=True
        ):
            out[place:end] = self._pad if source < 0 else arrays[number][token:token_end]

    def _find_part(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of each token that is counted through all parts, and the token's number in it."""
        numbers = np.searchsorted(self._part_starts, tokens, side="right") - 1
        return numbers, tokens - self._part_starts[numbers]
