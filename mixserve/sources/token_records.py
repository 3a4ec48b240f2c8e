"""What all sources of tokens share: windows or pieces as records, with segment ids and positions if they are wanted."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mixserve.sources.digest import digest_blocks
from mixserve.sources.open_file import OpenFile
from mixserve.sources.pieces import Pieces
from mixserve.sources.reopened import Arguments, reduce_to_paths
from mixserve.sources.segments import segments_by_end
from mixserve.sources.source import ElementSpec, RecordIds, Records
from mixserve.sources.token_ids import largest_id
from mixserve.sources.token_windows import Windows
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.text import show


class TokenRecords:
    """Records of `length` tokens in the field `field`. With segments also, int32 and of the same length,
    `{field}_segment_ids` (from 1; 0 is padding) and `{field}_positions` (from 0 in each segment)."""

    # Of the subclass, if all tokens are in files: a pickle has their paths. None if it must have the tokens.
    _arguments: Arguments | None = None

    def __init__(
        self,
        layout: Windows | Pieces,
        *,
        field: str,
        as_dtype: np.dtype,
        name: str | None,
        segments: bool,
        eod: int | None,
        vocab_size: int | None,
    ):
        """With windows, `segments` end at the token `eod`. Raises ValueError if a sample of ids is not below
        `vocab_size`."""
        self.name = name
        self._layout, self._field, self._as_dtype = layout, field, as_dtype
        self._segments, self._eod, self._vocab_size = segments, eod, vocab_size
        if segments or isinstance(layout, Pieces):
            self.__dict__["blocks"] = None  # hides the method: the records are no rows of arrays
        if vocab_size is not None:
            self.largest_id()

    def __len__(self) -> int:
        return len(self._layout)

    def element_spec(self) -> ElementSpec:
        spec = {self._field: jax.ShapeDtypeStruct((self._layout.length,), self._as_dtype)}
        if self._segments:
            added = jax.ShapeDtypeStruct((self._layout.length,), np.dtype(np.int32))
            spec |= {f"{self._field}_segment_ids": added, f"{self._field}_positions": added}
        return spec

    def take(self, record_ids: RecordIds) -> Records:
        if isinstance(self._layout, Pieces):
            by_eod = self._segments and self._eod is not None
            tokens, added = self._layout.take(record_ids, self._as_dtype, segments=self._segments and not by_eod)
        else:
            by_eod = self._segments
            tokens, added = self._layout.take(record_ids).astype(self._as_dtype, copy=False), None
        if by_eod:
            assert self._eod is not None
            added = segments_by_end(tokens, self._eod)
        taken = {self._field: tokens}
        if added is not None:
            taken |= {f"{self._field}_segment_ids": added[0], f"{self._field}_positions": added[1]}
        return taken

    def locate(self, record_id: int) -> str:
        """The file, or the number of the input, and the token in it at which the record begins."""
        return self._layout.locate(record_id)

    def blocks(self) -> Sequence[Mapping[str, np.ndarray]]:
        """The records as rows of arrays. None in place of this method if the records are no rows of arrays."""
        assert isinstance(self._layout, Windows)
        return self._layout.rows.blocks()

    def files(self) -> Sequence[OpenFile]:
        """The files that the tokens are in."""
        return list({id(file): file for file in self._layout.files()}.values())

    def prefetch(self, record_ids: RecordIds) -> None:
        """Ask the system to read these records soon, without waiting for them."""
        self._layout.prefetch(record_ids)

    @property
    def stored_dtype(self) -> np.dtype:
        """The dtype of the tokens as they are stored."""
        return self._layout.arrays[0].dtype

    @property
    def vocab_size(self) -> int | None:
        """What ids must be below, as it was given."""
        return self._vocab_size

    def largest_id(self, *, full: bool = False) -> int | None:
        """The largest id of a sample of the tokens, of all if `full`; None if they are no integers.

        Raises ValueError, which says where, if ids are not in [0, vocab_size).
        """
        layout = self._layout
        locate = layout.locate if isinstance(layout, Windows) else layout.locate_token
        return largest_id(layout.arrays, self._vocab_size, locate, full=full)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._arguments is None:
            return _new, (type(self),), self.__dict__
        return reduce_to_paths(self, self._arguments)

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint."""
        digest = digest_blocks({self._field: array} for array in self._layout.arrays)
        options = self._digest_options()
        return hashlib.sha256(digest + json.dumps(options, sort_keys=True).encode()).digest() if options else digest

    def _digest_options(self) -> dict[str, Any]:
        """What else than the arrays of the layout determines the records; empty if nothing does."""
        return {"segments": True, "eod": self._eod} if self._segments else {}

    def __repr__(self) -> str:
        added = ", with segments" if self._segments else ""
        return (
            f"{type(self).__name__}({self._field}: {self._as_dtype.name}[{self._layout.length}], length={len(self)}"
            f"{added})"
        )


def _new(source: type[TokenRecords]) -> TokenRecords:
    return source.__new__(source)


def checked_stride(length: Any, overlap: Any) -> tuple[int, int]:
    """Length and stride of windows. Raises ValueError."""
    length = check_integer("sequence_length", length, 1)
    return length, length - check_integer("overlap", overlap, 0, length - 1)


def checked_dtype(name: str, dtype: Any) -> np.dtype | None:
    """`dtype` as NumPy's. Raises TypeError, which names the argument."""
    try:
        return None if dtype is None else np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{name} must be a dtype such as 'uint16' or 'uint32', got {show(dtype)}") from None


def served_dtype(arrays: Sequence[np.ndarray], as_dtype: np.dtype | None, what: str) -> np.dtype:
    """The dtype of the records. Raises ValueError unless all arrays have one dtype, all of whose values it has."""
    stored = {array.dtype for array in arrays}
    if len(stored) != 1:
        raise ValueError(f"{what} must store the same dtype, got {sorted(map(str, stored))}")
    dtype_name(arrays[0].dtype)
    dtype = as_dtype or arrays[0].dtype
    dtype_name(dtype)
    if not np.can_cast(arrays[0].dtype, dtype):
        raise ValueError(f"tokens of dtype {arrays[0].dtype} do not all fit into {dtype}; choose a wider one")
    return dtype


def check_token(name: str, token: Any, dtype: np.dtype, vocab_size: int | None = None) -> int:
    """`token` as an int. Raises ValueError, which names the option, if `dtype` or the vocabulary does not have it."""
    token = check_integer(name, token)
    info = np.iinfo(dtype) if dtype.kind in "iu" else None
    if info is not None and not info.min <= token <= info.max:
        raise ValueError(f"{name} must be an id of {dtype}, got {show(token)}")
    if vocab_size is not None and not 0 <= token < vocab_size:
        raise ValueError(f"{name} must be an id below vocab_size ({vocab_size:,}), got {show(token)}")
    return token
