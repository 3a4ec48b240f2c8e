"""Batches <-> bytes: the Batch message is written and read by hand, so that array data stay in place."""

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixserve_client.errors import CorruptReply
from mixserve_client.schema.dtypes import dtype_name, dtype_named
from mixserve_client.schema.fields import Field
from mixserve_client.wire import frame

Array = npt.NDArray[Any]

_FINGERPRINT, _ARRAYS, _SLOT, _SLOT_BYTES = 1, 2, 3, 4
_NAME, _DTYPE, _SHAPE, _PADDING, _DATA = 1, 2, 3, 14, 15
_ALIGNMENT = 64
# Limits on hostile messages. NumPy has at most 64 dimensions; some encoders send them unpacked, a field each, and newer
# servers may send fields that are unknown here.
_DIMENSIONS, _ARRAY_FIELDS, _OTHER_FIELDS = 64, 256, 256
_VARINT_BYTES = 10


class _ArrayLayout(NamedTuple):
    """The place of one array in a framed batch."""

    field: Field
    head_at: int
    head: bytes
    data_at: int
    data_bytes: int


def batch_bytes(fingerprint: str, fields: tuple[Field, ...], size: int) -> int:
    """The length of the Batch message that holds `size` rows."""
    return _layout(fingerprint, fields, size)[0]


def frame_batch(
    memory: npt.NDArray[np.uint8], fingerprint: str, fields: tuple[Field, ...], size: int
) -> dict[str, Array]:
    """Write a Batch message of `size` rows without its data into `memory`, uint8, at least `batch_bytes` long.

    Returns writable views for the data, by field name, of shapes (size, *field.shape). Fill them all before the message
    is sent: they have undefined content.
    """
    arrays: dict[str, Array] = {}
    for place in _layout(fingerprint, fields, size)[1]:
        memory[place.head_at : place.data_at] = np.frombuffer(place.head, np.uint8)
        data = memory[place.data_at : place.data_at + place.data_bytes]
        arrays[place.field.name] = data.view(place.field.dtype).reshape(size, *place.field.shape)
    return arrays


def encode_slot_reply(slot: int, size: int) -> bytes:
    """The Batch message that refers to the first `size` bytes of a slot as the batch."""
    return frame.number(_SLOT, slot) + frame.number(_SLOT_BYTES, size)


def decode_slot_reply(message: bytes) -> tuple[int, int] | None:
    """The slot and the size in bytes if `message` refers to a slot; None if it contains its batch.

    Raises CorruptReply.
    """
    # `encode_slot_reply` writes the slot first, so one byte decides for messages of any size.
    if not message or message[0] != frame.number_tag(_SLOT)[0]:
        return None
    try:
        found = frame.fields(memoryview(message), _OTHER_FIELDS)
        numbers = {number: value for number, value in found if isinstance(value, int)}
        return numbers[_SLOT], numbers[_SLOT_BYTES]
    except (ValueError, KeyError) as error:
        raise CorruptReply(f"the server's reference to a slot cannot be read: {error!r:.200}") from error


@lru_cache(maxsize=256)
def _layout(fingerprint: str, fields: tuple[Field, ...], size: int) -> tuple[int, tuple[_ArrayLayout, ...]]:
    at, lead, places = 0, frame.delimited(_FINGERPRINT, fingerprint.encode()), list[_ArrayLayout]()
    for field in fields:
        shape = b"".join(frame.varint(dim) for dim in (size, *field.shape))
        description = (
            frame.delimited(_NAME, field.name.encode())
            + frame.delimited(_DTYPE, dtype_name(field.dtype).encode())
            + frame.delimited(_SHAPE, shape)
        )
        data_bytes = size * field.nbytes
        head = lead + _head(description, data_bytes, at + len(lead))
        places.append(_ArrayLayout(field, at, head, at + len(head), data_bytes))
        at, lead = places[-1].data_at + data_bytes, b""
    return at, tuple(places)


def _head(description: bytes, data_bytes: int, at: int) -> bytes:
    """An array's encoding up to its data, padded so that the data are aligned if the head is at offset `at`."""

    def pad(padding: int) -> bytes:
        body = description + frame.delimited(_PADDING, bytes(padding)) + frame.tag(_DATA) + frame.varint(data_bytes)
        return frame.tag(_ARRAYS) + frame.varint(len(body) + data_bytes) + body

    # Up to twice the alignment: a longer padding may need longer length prefixes, and so skip the aligned offset once.
    heads = map(pad, range(1, 2 * _ALIGNMENT))
    return next(head for head in heads if (at + len(head)) % _ALIGNMENT == 0)


def view_batch(
    message: bytes | memoryview, fingerprint: str, fields: tuple[Field, ...], size: int
) -> dict[str, Array] | None:
    """The arrays of a Batch message that `frame_batch` made with these arguments, as read-only views.

    None for every other message: `decode_batch` reads all of them.
    """
    # The heads are known to the byte, so a comparison replaces parsing.
    total, places = _layout(fingerprint, fields, size)
    if len(message) != total:
        return None
    arrays: dict[str, Array] = {}
    for place in places:
        if message[place.head_at : place.data_at] != place.head:
            return None
        data = np.frombuffer(message, np.uint8, place.data_bytes, place.data_at)
        array = data.view(place.field.dtype).reshape(size, *place.field.shape)
        if not array.flags.aligned:  # gRPC's bytes objects may begin at any address
            return None
        arrays[place.field.name] = array
    return arrays


def decode_batch(message: bytes | memoryview, most_arrays: int = 1 << 16) -> tuple[str, dict[str, Array]]:
    """The fingerprint and the arrays of a Batch message: read-only views of it, or copies if they are not aligned.

    Ignores unknown fields. Raises CorruptReply unless `message` is a complete Batch of 1 to `most_arrays` arrays.
    """
    fingerprint, arrays = "", dict[str, Array]()
    try:
        for number, value in frame.fields(memoryview(message), most_arrays + _OTHER_FIELDS):
            if number == _FINGERPRINT:
                fingerprint = _text(value)
            elif number == _ARRAYS:
                name, array = _decode_array(_bytes(value))
                if name in arrays:
                    raise ValueError(f"the array {name!r:.100} comes twice")
                arrays[name] = array
        if not fingerprint or not arrays:
            raise ValueError("it must have a fingerprint and at least one array")
    except (ValueError, KeyError) as error:
        raise CorruptReply(f"the server's batch of {len(message)} bytes cannot be read: {error!s:.500}") from error
    return fingerprint, arrays


def _decode_array(message: memoryview) -> tuple[str, Array]:
    name, dtype, shape, data = "", "", list[int](), memoryview(b"")
    for number, value in frame.fields(message, _ARRAY_FIELDS):
        if number == _NAME:
            name = _text(value)
        elif number == _DTYPE:
            dtype = _text(value)
        elif number == _SHAPE:
            shape += [value] if isinstance(value, int) else _read_packed(value)
        elif number == _DATA:
            data = _bytes(value)
    kind = dtype_named(dtype)
    if len(shape) > _DIMENSIONS:
        raise ValueError(f"the array {name!r:.100} must have at most {_DIMENSIONS} dimensions, got {len(shape)}")
    if max(shape, default=0) >> 63 or prod(shape) * kind.itemsize != len(data):
        raise ValueError(
            f"the array {name!r:.100} of shape {shape!r:.100} and dtype {dtype} cannot have {len(data)} bytes"
        )
    array = np.frombuffer(data, np.uint8).view(kind).reshape(shape)
    return name, array if array.flags.aligned else _read_only(array.copy())


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


def _read_packed(view: memoryview) -> list[int]:
    if len(view) > _DIMENSIONS * _VARINT_BYTES:
        raise ValueError(f"an array must have at most {_DIMENSIONS} dimensions, got a shape of {len(view)} bytes")
    values, at = list[int](), 0
    while at < len(view):
        value, at = frame.read_varint(view, at)
        values.append(value)
    return values


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a field must have bytes, got a number")
    return value


def _text(value: int | memoryview) -> str:
    return str(_bytes(value), "utf-8")


def check_batch(arrays: Mapping[str, Array], fields: tuple[Field, ...], size: int | None = None) -> int:
    """The number of rows in `arrays`.

    Raises CorruptReply unless they have exactly these fields, and `size` rows if it is given.
    """
    rows = size
    if rows is None:
        rows = next((len(array) for array in arrays.values() if array.ndim), 0)
    got = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    expected = {field.name: (field.dtype, (rows, *field.shape)) for field in fields}
    if got != expected or rows < 1:
        raise CorruptReply(f"the server's batch does not match its description: {_difference(expected, got)}")
    return rows


def _difference(expected: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """The first difference only, since there may be thousands of fields."""
    name = next((name for name in (*expected, *got) if expected.get(name) != got.get(name)), "")
    texts = [f"{side[name][0]}{list(side[name][1])}" if name in side else "no such array" for side in (expected, got)]
    return f"expected in {name!r:.100} {texts[0]:.200}, got {texts[1]:.200}"
