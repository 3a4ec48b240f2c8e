"""The protocol of sources: a length, a spec, and batched random access to records."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped, UInt32

# Dicts, tuples or lists, nested to any depth; leaves are jax.ShapeDtypeStruct, or arrays with a leading dimension.
ElementSpec = Any
Records = Any
RecordIds = Int[np.ndarray, " size"]


@runtime_checkable
class Source(Protocol):
    """Records by index. A source may have a `name`, which is its name in a mixture, and a `locate(record_id)`, which
    says in a text where a record lies, such as its file and byte. A source that reads files may have a
    `prefetch(record_ids)`, which asks the system to read records soon and does not wait, and a `files()`, the OpenFiles
    whose changes make the server refuse its records. Sources of mapped arrays need neither. A source that asks others
    for its records may have a `begin_take(record_ids)`, which does not wait, and returns a function that does, once:
    what several sources ask for, and what the next batch needs, is under way at the same time.

    The fingerprint identifies its content by its `content_id`, a string that changes when the content does, else by the
    bytes that `content_digest()` returns, else by a sample of records. Those bytes may stand for a sample too:
    `content_sampled` is then true.
    """

    def __len__(self) -> int:
        """The number of records."""
        ...

    def element_spec(self) -> ElementSpec:
        """Shape and stored dtype of every field of one record."""
        ...

    def take(self, record_ids: RecordIds) -> Records:
        """The records of these ids, in this order: the spec's structure, with leaves of shape (size, *leaf shape)."""
        ...


class ArrayBacked(Source, Protocol):
    """A source whose records are rows of arrays in memory, or in memory-mapped files."""

    def blocks(self) -> Sequence[Mapping[str, Shaped[np.ndarray, "rows ..."]]]:
        """The rows, in record order, as blocks of arrays by the names of leaves (`mixserve_client.schema.tree`).

        Every row is C-contiguous, and the rows of a block are evenly spaced. A block's dtype may differ from the
        spec's: rows are cast when they are read.
        """
        ...


class KeyedSource(Protocol):
    """A source whose records also depend on a key, as the reference's protocol allows."""

    def __len__(self) -> int: ...

    def element_spec(self) -> ElementSpec: ...

    def take_keyed(self, record_ids: RecordIds, keys: UInt32[np.ndarray, "size 2"]) -> Records:
        """As `Source.take`, with the two words of a separate key for each record."""
        ...


AnySource = Source | KeyedSource


def is_keyed(source: Any) -> bool:
    """Whether `source` is a `KeyedSource`."""
    return callable(getattr(source, "take_keyed", None))


def is_array_backed(source: Any) -> bool:
    """Whether rows of `source` can be copied from its `blocks()`."""
    return callable(getattr(source, "blocks", None))


def content_bytes(source: Any) -> bytes:
    """The `content_digest()` of `source`, empty if it has none."""
    digest: Any = getattr(source, "content_digest", None)
    if callable(digest):
        digest = digest()
    if digest is not None and not isinstance(digest, bytes):
        raise TypeError(f"content_digest() of {source!r:.200} must return bytes, got {digest!r:.100}")
    return digest or b""
