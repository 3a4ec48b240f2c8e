"""A source and the ids of some of its records -> a source without them."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mixserve.error_boundary import WrongRecord
from mixserve.sources.location import locate
from mixserve.sources.open_file import OpenFile, files_of
from mixserve.sources.source import ElementSpec, RecordIds, Records, Source, content_bytes
from mixserve.sources.undecodable import is_undecodable

# What a source may have besides records, and has of all of them.
_SHARED = frozenset(
    (
        "close",
        "content_sampled",
        "dictionaries",
        "largest_id",
        "reset",
        "stored_dtype",
        "too_long",
        "vocab_size",
        "warnings",
    )
)


class SourceWithout:
    """The records of `source` but those whose ids are `left_out`; the others move up.

    Its records are other than those of an equal source without as many: the ids are part of its content.
    """

    def __init__(self, source: Source, left_out: Int[np.ndarray, " some"], *, content_id: str | None = None, hint: str):
        """`left_out` rises strictly. `content_id` identifies the content of `source`, in place of its own id and
        digest. `hint` is what to do about another record that cannot be decoded: the end of its error."""
        own: Any = getattr(source, "content_id", None)
        self.name: str | None = getattr(source, "name", None)
        self._source, self._left_out, self._hint = source, np.asarray(left_out, np.int64), hint
        self._own_id = own if content_id is None else content_id
        # Before the record with this number here, as many have been left out as it has places before it.
        self._before = self._left_out - np.arange(len(self._left_out))
        # Of the source alone while it is whole; else it says too little.
        self.content_id: Any = None if len(self._left_out) else self._own_id

    def __len__(self) -> int:
        return len(self._source) - len(self._left_out)

    def element_spec(self) -> ElementSpec:
        return self._source.element_spec()

    def take(self, record_ids: RecordIds) -> Records:
        ids = self.ids_within(record_ids)
        try:
            return self._source.take(ids)
        except ValueError as error:
            if not is_undecodable(error):
                raise
            which = f"; it is the record {ids[0]} of the data" if len(ids) == 1 and len(self._left_out) else ""
            raise WrongRecord(f"{error}{which}; {self._hint}") from error

    def ids_within(self, record_ids: Int[np.ndarray, " size"]) -> Int[np.ndarray, " size"]:
        """The ids of these records in the source with all records. Raises IndexError."""
        ids = np.asarray(record_ids, np.int64)
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
            raise IndexError(f"record ids must be in 0..{len(self) - 1}, got {ids.min()} to {ids.max()}")
        return ids + np.searchsorted(self._before, ids, side="right")

    def locate(self, record_id: int) -> str:
        """Where the record lies; its number there is that with all records."""
        return locate(self._source, int(self.ids_within(np.array([record_id]))[0]))

    def files(self) -> Sequence[OpenFile]:
        """The open files whose changes are noticed."""
        return files_of(self._source)

    @property
    def prefetch(self) -> Callable[[RecordIds], None] | None:
        """The method that asks the system to read records soon, or None if the source has none."""
        hook: Callable[[RecordIds], None] | None = getattr(self._source, "prefetch", None)
        return None if hook is None else lambda record_ids: hook(self.ids_within(record_ids))

    @property
    def _getitems(self) -> Callable[[Sequence[int]], Any] | None:
        """Grain's batched hook, or None if the source has none; see `RandomAccessSource`."""
        hook: Any = getattr(self._source, "_getitems", None)
        return (lambda indices: hook(self.ids_within(np.asarray(indices)).tolist())) if callable(hook) else None

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint. That of the source if no record is left out."""
        if not len(self._left_out):
            return content_bytes(self._source)
        digest = hashlib.sha256(b"mixserve without:")
        if self._own_id is None:
            digest.update(b"digest:" + hashlib.sha256(content_bytes(self._source)).digest())
        else:
            digest.update(b"id:" + hashlib.sha256(str(self._own_id).encode(errors="surrogatepass")).digest())
        digest.update(self._left_out.astype("<i8").tobytes())
        return digest.digest()

    def __getattr__(self, name: str) -> Any:
        if name in _SHARED:
            return getattr(self._source, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        without = f" without {len(self._left_out):,} records" if len(self._left_out) else ""
        return f"{self._source!r}{without}"
