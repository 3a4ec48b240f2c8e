"""Sources of records: the protocol, and one file per kind of storage."""

from mixserve.sources.array_source import ArraySource
from mixserve.sources.random_access import RandomAccessSource
from mixserve.sources.source import ArrayBacked, ElementSpec, RecordIds, Records, Source, content_bytes, is_array_backed
from mixserve.sources.token_source import TokenSource

__all__ = [
    "ArrayBacked",
    "ArraySource",
    "ElementSpec",
    "RandomAccessSource",
    "RecordIds",
    "Records",
    "Source",
    "TokenSource",
    "content_bytes",
    "is_array_backed",
]
