"""Sources of records: the protocol, and one file per kind of storage."""

from mixserve.sources.array_source import ArraySource
from mixserve.sources.random_access import RandomAccessSource
from mixserve.sources.record import RecordCheck, read_record
from mixserve.sources.reference_source import FollowsReference, ReferenceSource
from mixserve.sources.source import (
    AnySource,
    ArrayBacked,
    ElementSpec,
    KeyedSource,
    RecordIds,
    Records,
    Source,
    content_bytes,
    is_array_backed,
    is_keyed,
)
from mixserve.sources.token_source import TokenSource

__all__ = [
    "AnySource",
    "ArrayBacked",
    "ArraySource",
    "ElementSpec",
    "FollowsReference",
    "KeyedSource",
    "RandomAccessSource",
    "RecordCheck",
    "RecordIds",
    "Records",
    "ReferenceSource",
    "Source",
    "TokenSource",
    "content_bytes",
    "is_array_backed",
    "is_keyed",
    "read_record",
]
