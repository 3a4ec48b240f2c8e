"""The bytes of a `tf.train.Example` -> arrays. TensorFlow is not needed: the message has three field numbers."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from mixserve.sources.decoders import (
    first_of_each,
    missing,
    name_field,
    refuse_text,
    stored_bytes,
    to_integers,
    wanted_of,
)
from mixserve.sources.fields import FieldSpec, Served, Stored

_INT64, _FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


class ExampleDecoder:
    """The record is a `tf.train.Example`: its features are int64, float32, or one string of bytes, which is ragged.

    A feature of one number is a scalar, and one of several a vector. Integers may be wanted `as` any integer dtype that
    holds the record's values, since an Example has no other than int64.
    """

    def stored(self, records: Iterable[bytes], wanted: Sequence[FieldSpec] | None) -> Mapping[str, Stored | str]:
        return first_of_each(
            ({name: feature for name, feature in _features(record).items() if _kind(feature)} for record in records),
            wanted,
            lambda feature, name: _stored(feature, name, wanted),
        )

    def decode(self, record: bytes, fields: Sequence[Served]) -> list[np.ndarray]:
        features = _features(record)
        return [_value(features, field) for field in fields]


def _value(features: Any, field: Served) -> np.ndarray:
    name, stored = field.spec.source, field.stored
    feature = features.get(name)
    kind = None if feature is None else _kind(feature)
    if kind is None:
        return missing(field)
    values = getattr(feature, kind).value
    try:
        if (kind == "bytes_list") != stored.is_text and values:
            refuse_text(field, kind.replace("_", " "))
        if kind == "bytes_list":
            if len(values) == 1:
                return np.frombuffer(values[0], np.uint8)
            if len(values) == 0 and stored.is_ragged:
                return np.empty(0, np.uint8)
            raise ValueError(f"has {len(values)} strings of bytes; only one can be served")
        array = np.array(values, _INT64 if kind == "int64_list" else _FLOAT32)
        if kind == "int64_list" and stored.dtype.kind in "iu":
            array = to_integers(array, stored.dtype)
        return array.reshape(()) if stored.shape == () and not stored.is_ragged and array.size == 1 else array
    except ValueError as error:
        raise name_field(error, field) from None


def _stored(feature: Any, name: str, wanted: Sequence[FieldSpec] | None) -> Stored | str:
    kind = _kind(feature)
    values = getattr(feature, kind or "").value
    if kind == "bytes_list":
        if len(values) > 1:
            return f"it has {len(values)} strings of bytes, and only one can be served"
        return stored_bytes(values[0] if values else b"", name, wanted)
    is_ragged, dtype = wanted_of(name, wanted)
    found = _FLOAT32 if kind == "float_list" else dtype if dtype is not None and dtype.kind in "iu" else _INT64
    return Stored(found, () if is_ragged or len(values) == 1 else (len(values),), is_ragged)


def _features(record: bytes) -> Any:
    try:
        return _message().FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"it is not a tf.train.Example: {error}") from None


def _kind(feature: Any) -> str | None:
    return feature.WhichOneof("kind")


@cache
def _message() -> Any:
    """The class of Example. It is in a pool of its own: TensorFlow may register its own in this process."""
    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="mixserve", syntax="proto3")

    def add(name: str) -> Any:
        return file.message_type.add(name=name)

    def add_field(message: Any, name: str, number: int, of: str | int, **options: Any) -> None:
        kind = {"type": of} if isinstance(of, int) else {"type": types.TYPE_MESSAGE, "type_name": f".mixserve.{of}"}
        message.field.add(name=name, number=number, **({"label": types.LABEL_OPTIONAL} | kind | options))

    for name, of in (
        ("BytesList", types.TYPE_BYTES),
        ("FloatList", types.TYPE_FLOAT),
        ("Int64List", types.TYPE_INT64),
    ):
        add_field(add(name), "value", 1, of, label=types.LABEL_REPEATED)
    feature = add("Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        add_field(feature, name, number, file.message_type[number - 1].name, oneof_index=0)
    features = add("Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add_field(entry, "key", 1, types.TYPE_STRING)
    add_field(entry, "value", 2, "Feature")
    add_field(features, "feature", 1, "Features.FeatureEntry", label=types.LABEL_REPEATED)
    add_field(add("Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mixserve.Example"))
