from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Content(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTENT_RECORDS: _ClassVar[Content]
    CONTENT_RECORDS_AND_PROVENANCE: _ClassVar[Content]
    CONTENT_PROVENANCE: _ClassVar[Content]
CONTENT_RECORDS: Content
CONTENT_RECORDS_AND_PROVENANCE: Content
CONTENT_PROVENANCE: Content

class ListMixturesRequest(_message.Message):
    __slots__ = ("checksum",)
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    checksum: int
    def __init__(self, checksum: _Optional[int] = ...) -> None: ...

class ListMixturesReply(_message.Message):
    __slots__ = ("names", "checksum")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    checksum: int
    def __init__(self, names: _Optional[_Iterable[str]] = ..., checksum: _Optional[int] = ...) -> None: ...

class GetMixtureRequest(_message.Message):
    __slots__ = ("mixture", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., checksum: _Optional[int] = ...) -> None: ...

class Mixture(_message.Message):
    __slots__ = ("name", "fingerprint", "fields", "sources", "limits", "placement", "sampling", "block_size", "stop", "end", "schedule", "leaves", "checksum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    limits: Limits
    placement: str
    sampling: str
    block_size: int
    stop: str
    end: int
    schedule: _containers.RepeatedCompositeFieldContainer[ScheduleEntry]
    leaves: _containers.RepeatedScalarFieldContainer[str]
    checksum: int
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., placement: _Optional[str] = ..., sampling: _Optional[str] = ..., block_size: _Optional[int] = ..., stop: _Optional[str] = ..., end: _Optional[int] = ..., schedule: _Optional[_Iterable[_Union[ScheduleEntry, _Mapping]]] = ..., leaves: _Optional[_Iterable[str]] = ..., checksum: _Optional[int] = ...) -> None: ...

class ScheduleEntry(_message.Message):
    __slots__ = ("start", "weights")
    START_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    start: int
    weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, start: _Optional[int] = ..., weights: _Optional[_Iterable[float]] = ...) -> None: ...

class DefineScheduleRequest(_message.Message):
    __slots__ = ("mixture", "expected_fingerprint", "parent", "entries", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    expected_fingerprint: str
    parent: str
    entries: _containers.RepeatedCompositeFieldContainer[ScheduleEntry]
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., expected_fingerprint: _Optional[str] = ..., parent: _Optional[str] = ..., entries: _Optional[_Iterable[_Union[ScheduleEntry, _Mapping]]] = ..., checksum: _Optional[int] = ...) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("id", "end", "checksum")
    ID_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    id: str
    end: int
    checksum: int
    def __init__(self, id: _Optional[str] = ..., end: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class Field(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("name", "length", "weight", "pass_end", "content_unknown", "content_sampled")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PASS_END_FIELD_NUMBER: _ClassVar[int]
    CONTENT_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SAMPLED_FIELD_NUMBER: _ClassVar[int]
    name: str
    length: int
    weight: float
    pass_end: int
    content_unknown: bool
    content_sampled: bool
    def __init__(self, name: _Optional[str] = ..., length: _Optional[int] = ..., weight: _Optional[float] = ..., pass_end: _Optional[int] = ..., content_unknown: bool = ..., content_sampled: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("size", "reply_bytes")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    size: int
    reply_bytes: int
    def __init__(self, size: _Optional[int] = ..., reply_bytes: _Optional[int] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("implementation", "words")
    IMPLEMENTATION_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    implementation: str
    words: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, implementation: _Optional[str] = ..., words: _Optional[_Iterable[int]] = ...) -> None: ...

class GetBatchAtRequest(_message.Message):
    __slots__ = ("mixture", "start", "size", "key", "expected_fingerprint", "schedule", "content", "sender", "slots", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    start: int
    size: int
    key: Key
    expected_fingerprint: str
    schedule: str
    content: Content
    sender: Sender
    slots: _containers.RepeatedScalarFieldContainer[int]
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., start: _Optional[int] = ..., size: _Optional[int] = ..., key: _Optional[_Union[Key, _Mapping]] = ..., expected_fingerprint: _Optional[str] = ..., schedule: _Optional[str] = ..., content: _Optional[_Union[Content, str]] = ..., sender: _Optional[_Union[Sender, _Mapping]] = ..., slots: _Optional[_Iterable[int]] = ..., checksum: _Optional[int] = ...) -> None: ...

class Sender(_message.Message):
    __slots__ = ("client", "reader", "wait_share", "trace")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    WAIT_SHARE_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    client: str
    reader: int
    wait_share: float
    trace: str
    def __init__(self, client: _Optional[str] = ..., reader: _Optional[int] = ..., wait_share: _Optional[float] = ..., trace: _Optional[str] = ...) -> None: ...

class StreamBatchesRequest(_message.Message):
    __slots__ = ("first", "stride", "count", "reply_rows", "slots", "checksum")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    REPLY_ROWS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    first: GetBatchAtRequest
    stride: int
    count: int
    reply_rows: int
    slots: _containers.RepeatedScalarFieldContainer[int]
    checksum: int
    def __init__(self, first: _Optional[_Union[GetBatchAtRequest, _Mapping]] = ..., stride: _Optional[int] = ..., count: _Optional[int] = ..., reply_rows: _Optional[int] = ..., slots: _Optional[_Iterable[int]] = ..., checksum: _Optional[int] = ...) -> None: ...

class StreamPositionsRequest(_message.Message):
    __slots__ = ("mixture", "positions", "key", "expected_fingerprint", "schedule", "content", "reply_rows", "sender", "slots", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    REPLY_ROWS_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    positions: _containers.RepeatedScalarFieldContainer[int]
    key: Key
    expected_fingerprint: str
    schedule: str
    content: Content
    reply_rows: int
    sender: Sender
    slots: _containers.RepeatedScalarFieldContainer[int]
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., positions: _Optional[_Iterable[int]] = ..., key: _Optional[_Union[Key, _Mapping]] = ..., expected_fingerprint: _Optional[str] = ..., schedule: _Optional[str] = ..., content: _Optional[_Union[Content, str]] = ..., reply_rows: _Optional[int] = ..., sender: _Optional[_Union[Sender, _Mapping]] = ..., slots: _Optional[_Iterable[int]] = ..., checksum: _Optional[int] = ...) -> None: ...

class GetSourceRequest(_message.Message):
    __slots__ = ("mixture", "source", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    source: str
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., source: _Optional[str] = ..., checksum: _Optional[int] = ...) -> None: ...

class RecordSource(_message.Message):
    __slots__ = ("mixture", "name", "fields", "length", "content", "fingerprint", "content_sampled", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SAMPLED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    name: str
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    length: int
    content: bytes
    fingerprint: str
    content_sampled: bool
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., name: _Optional[str] = ..., fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., length: _Optional[int] = ..., content: _Optional[bytes] = ..., fingerprint: _Optional[str] = ..., content_sampled: bool = ..., checksum: _Optional[int] = ...) -> None: ...

class TakeRecordsRequest(_message.Message):
    __slots__ = ("mixture", "record_ids", "source", "hops", "expected_fingerprint", "reply_rows", "sender", "slots", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    RECORD_IDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    REPLY_ROWS_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    record_ids: _containers.RepeatedScalarFieldContainer[int]
    source: str
    hops: int
    expected_fingerprint: str
    reply_rows: int
    sender: Sender
    slots: _containers.RepeatedScalarFieldContainer[int]
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., record_ids: _Optional[_Iterable[int]] = ..., source: _Optional[str] = ..., hops: _Optional[int] = ..., expected_fingerprint: _Optional[str] = ..., reply_rows: _Optional[int] = ..., sender: _Optional[_Union[Sender, _Mapping]] = ..., slots: _Optional[_Iterable[int]] = ..., checksum: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("fingerprint", "arrays", "slot", "slot_bytes", "checksum")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    arrays: _containers.RepeatedCompositeFieldContainer[Array]
    slot: int
    slot_bytes: int
    checksum: int
    def __init__(self, fingerprint: _Optional[str] = ..., arrays: _Optional[_Iterable[_Union[Array, _Mapping]]] = ..., slot: _Optional[int] = ..., slot_bytes: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class Array(_message.Message):
    __slots__ = ("name", "dtype", "shape", "padding", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    padding: bytes
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., padding: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...

class GetServerRequest(_message.Message):
    __slots__ = ("without_bulk", "reader", "leaves")
    WITHOUT_BULK_FIELD_NUMBER: _ClassVar[int]
    READER_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    without_bulk: bool
    reader: Sender
    leaves: bool
    def __init__(self, without_bulk: bool = ..., reader: _Optional[_Union[Sender, _Mapping]] = ..., leaves: bool = ...) -> None: ...

class Server(_message.Message):
    __slots__ = ("shared_memory", "bulk_host", "bulk_port", "bulk_token", "workers", "checksums", "zone", "readers", "reply_s", "replicas", "replicas_version")
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    BULK_HOST_FIELD_NUMBER: _ClassVar[int]
    BULK_PORT_FIELD_NUMBER: _ClassVar[int]
    BULK_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    READERS_FIELD_NUMBER: _ClassVar[int]
    REPLY_S_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_VERSION_FIELD_NUMBER: _ClassVar[int]
    shared_memory: str
    bulk_host: str
    bulk_port: int
    bulk_token: bytes
    workers: _containers.RepeatedScalarFieldContainer[str]
    checksums: bool
    zone: str
    readers: int
    reply_s: float
    replicas: _containers.RepeatedScalarFieldContainer[str]
    replicas_version: int
    def __init__(self, shared_memory: _Optional[str] = ..., bulk_host: _Optional[str] = ..., bulk_port: _Optional[int] = ..., bulk_token: _Optional[bytes] = ..., workers: _Optional[_Iterable[str]] = ..., checksums: bool = ..., zone: _Optional[str] = ..., readers: _Optional[int] = ..., reply_s: _Optional[float] = ..., replicas: _Optional[_Iterable[str]] = ..., replicas_version: _Optional[int] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("checksum",)
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    checksum: int
    def __init__(self, checksum: _Optional[int] = ...) -> None: ...

class Stats(_message.Message):
    __slots__ = ("metrics", "checksum")
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    checksum: int
    def __init__(self, metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., checksum: _Optional[int] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "help", "kind", "labels", "bounds", "samples")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    help: str
    kind: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    def __init__(self, name: _Optional[str] = ..., help: _Optional[str] = ..., kind: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., bounds: _Optional[_Iterable[float]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("labels", "value", "counts")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    value: float
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, labels: _Optional[_Iterable[str]] = ..., value: _Optional[float] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class BulkRequest(_message.Message):
    __slots__ = ("method", "request", "checksum")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    method: str
    request: bytes
    checksum: int
    def __init__(self, method: _Optional[str] = ..., request: _Optional[bytes] = ..., checksum: _Optional[int] = ...) -> None: ...

class BulkError(_message.Message):
    __slots__ = ("code", "text", "metadata", "checksum")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    code: str
    text: str
    metadata: _containers.ScalarMap[str, str]
    checksum: int
    def __init__(self, code: _Optional[str] = ..., text: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., checksum: _Optional[int] = ...) -> None: ...
