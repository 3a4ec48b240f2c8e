"""Sources of records: the protocol, and one file per kind of storage."""

from typing import TYPE_CHECKING

from mixserve.lazy import lazy_attributes

if TYPE_CHECKING:
    from mixserve.sources.array_record_source import ArrayRecordSource
    from mixserve.sources.array_source import ArraySource
    from mixserve.sources.fields import FieldSpec
    from mixserve.sources.hdf5_source import Hdf5Source
    from mixserve.sources.hf_source import HfSource
    from mixserve.sources.mds_source import MDSSource
    from mixserve.sources.megatron_source import MegatronSource
    from mixserve.sources.parquet_source import ParquetSource
    from mixserve.sources.random_access import RandomAccessSource
    from mixserve.sources.record import RecordCheck, read_record
    from mixserve.sources.reference_source import FollowsReference, ReferenceSource
    from mixserve.sources.remote_source import RemoteSource
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
    from mixserve.sources.tfrecord_source import TFRecordSource
    from mixserve.sources.token_source import TokenSource
    from mixserve.sources.webdataset_source import WebDatasetSource
    from mixserve.sources.zarr_source import ZarrSource

__all__ = [
    "AnySource",
    "ArrayBacked",
    "ArrayRecordSource",
    "ArraySource",
    "ElementSpec",
    "FieldSpec",
    "FollowsReference",
    "Hdf5Source",
    "HfSource",
    "KeyedSource",
    "MDSSource",
    "MegatronSource",
    "ParquetSource",
    "RandomAccessSource",
    "RecordCheck",
    "RecordIds",
    "Records",
    "ReferenceSource",
    "RemoteSource",
    "Source",
    "TFRecordSource",
    "TokenSource",
    "WebDatasetSource",
    "ZarrSource",
    "content_bytes",
    "is_array_backed",
    "is_keyed",
    "read_record",
]

# Loaded at first use: commands that only read a configuration need the registry in this package, but not JAX.
_HOMES = {
    "ArrayRecordSource": "array_record_source",
    "ArraySource": "array_source",
    "FieldSpec": "fields",
    "FollowsReference": "reference_source",
    "Hdf5Source": "hdf5_source",
    "HfSource": "hf_source",
    "ParquetSource": "parquet_source",
    "MDSSource": "mds_source",
    "MegatronSource": "megatron_source",
    "RandomAccessSource": "random_access",
    "RecordCheck": "record",
    "ReferenceSource": "reference_source",
    "RemoteSource": "remote_source",
    "TFRecordSource": "tfrecord_source",
    "TokenSource": "token_source",
    "WebDatasetSource": "webdataset_source",
    "ZarrSource": "zarr_source",
    "read_record": "record",
}

__getattr__ = lazy_attributes(__name__, {name: f"mixserve.sources.{_HOMES.get(name, 'source')}" for name in __all__})
