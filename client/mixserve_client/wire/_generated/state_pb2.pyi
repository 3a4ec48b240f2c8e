from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OpenSessionRequest(_message.Message):
    __slots__ = ("mixture", "expected_fingerprint", "session", "lease", "holder", "fresh", "take_over", "ignore_fingerprint", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    TAKE_OVER_FIELD_NUMBER: _ClassVar[int]
    IGNORE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    expected_fingerprint: str
    session: str
    lease: str
    holder: str
    fresh: bool
    take_over: bool
    ignore_fingerprint: bool
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., expected_fingerprint: _Optional[str] = ..., session: _Optional[str] = ..., lease: _Optional[str] = ..., holder: _Optional[str] = ..., fresh: bool = ..., take_over: bool = ..., ignore_fingerprint: bool = ..., checksum: _Optional[int] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("ttl_s", "sequence", "index", "epoch", "resumed", "checksum")
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    ttl_s: float
    sequence: int
    index: int
    epoch: int
    resumed: bool
    checksum: int
    def __init__(self, ttl_s: _Optional[float] = ..., sequence: _Optional[int] = ..., index: _Optional[int] = ..., epoch: _Optional[int] = ..., resumed: bool = ..., checksum: _Optional[int] = ...) -> None: ...

class HeldSessions(_message.Message):
    __slots__ = ("sessions", "checksum")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[HeldSession]
    checksum: int
    def __init__(self, sessions: _Optional[_Iterable[_Union[HeldSession, _Mapping]]] = ..., checksum: _Optional[int] = ...) -> None: ...

class HeldSession(_message.Message):
    __slots__ = ("mixture", "session", "lease")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    session: str
    lease: str
    def __init__(self, mixture: _Optional[str] = ..., session: _Optional[str] = ..., lease: _Optional[str] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("checksum",)
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    checksum: int
    def __init__(self, checksum: _Optional[int] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("mixture", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., checksum: _Optional[int] = ...) -> None: ...

class Sessions(_message.Message):
    __slots__ = ("sessions", "checksum")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[SessionDescription]
    checksum: int
    def __init__(self, sessions: _Optional[_Iterable[_Union[SessionDescription, _Mapping]]] = ..., checksum: _Optional[int] = ...) -> None: ...

class SessionDescription(_message.Message):
    __slots__ = ("mixture", "session", "holder", "idle_s", "index", "epoch", "checkpoints", "damaged", "saved_only")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    SAVED_ONLY_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    session: str
    holder: str
    idle_s: float
    index: int
    epoch: int
    checkpoints: _containers.RepeatedScalarFieldContainer[str]
    damaged: str
    saved_only: bool
    def __init__(self, mixture: _Optional[str] = ..., session: _Optional[str] = ..., holder: _Optional[str] = ..., idle_s: _Optional[float] = ..., index: _Optional[int] = ..., epoch: _Optional[int] = ..., checkpoints: _Optional[_Iterable[str]] = ..., damaged: _Optional[str] = ..., saved_only: bool = ...) -> None: ...

class CallSessionRequest(_message.Message):
    __slots__ = ("mixture", "session", "lease", "sequence", "operation", "arguments", "checksum")
    MIXTURE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    mixture: str
    session: str
    lease: str
    sequence: int
    operation: str
    arguments: Value
    checksum: int
    def __init__(self, mixture: _Optional[str] = ..., session: _Optional[str] = ..., lease: _Optional[str] = ..., sequence: _Optional[int] = ..., operation: _Optional[str] = ..., arguments: _Optional[_Union[Value, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class CallSessionReply(_message.Message):
    __slots__ = ("value", "ended", "index", "epoch", "checksum")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    value: Value
    ended: bool
    index: int
    epoch: int
    checksum: int
    def __init__(self, value: _Optional[_Union[Value, _Mapping]] = ..., ended: bool = ..., index: _Optional[int] = ..., epoch: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("none", "flag", "integer", "number", "text", "array", "list", "tuple", "dict")
    NONE_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    TUPLE_FIELD_NUMBER: _ClassVar[int]
    DICT_FIELD_NUMBER: _ClassVar[int]
    none: bool
    flag: bool
    integer: int
    number: float
    text: str
    array: ArrayValue
    list: Values
    tuple: Values
    dict: Entries
    def __init__(self, none: bool = ..., flag: bool = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., text: _Optional[str] = ..., array: _Optional[_Union[ArrayValue, _Mapping]] = ..., list: _Optional[_Union[Values, _Mapping]] = ..., tuple: _Optional[_Union[Values, _Mapping]] = ..., dict: _Optional[_Union[Entries, _Mapping]] = ...) -> None: ...

class ArrayValue(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Entries(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("name", "number", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    number: int
    value: Value
    def __init__(self, name: _Optional[str] = ..., number: _Optional[int] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
