"""The bytes of a Value -> how many values it holds, before protobuf makes an object of each."""

from mixserve_client.wire._generated import state_pb2
from mixserve_client.wire.frame import read_varint

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DIMENSIONS_BYTES = 10 * 32  # ten for each number, at most
# Levels of messages, of which a value that is allowed has three for each of its levels, and protobuf allows 100.
_LEVELS = 100
# Each value has at most four: of a dict, the fields of its entry, key, value and kind.
_FIELDS_OF_A_VALUE = 4
_SPARE_FIELDS = 1000


def _tag(message: str, field: str) -> int:
    return state_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name[field].number << 3 | _BYTES


# By message, the fields that are messages themselves; by what kind of message a field is.
_VALUE, _VALUES, _ENTRIES, _ENTRY, _ARRAY = range(5)
_CHILDREN: list[dict[int, int]] = [
    {
        _tag("Value", "array"): _ARRAY,
        _tag("Value", "list"): _VALUES,
        _tag("Value", "tuple"): _VALUES,
        _tag("Value", "dict"): _ENTRIES,
    },
    {_tag("Values", "values"): _VALUE},
    {_tag("Entries", "entries"): _ENTRY},
    {_tag("Entry", "value"): _VALUE},
    {},
]
_SHAPE = _tag("ArrayValue", "shape")


def check_values(data: bytes, most: int) -> None:
    """Raises ValueError if the Value message in `data` holds more than `most` values, or cannot be one.

    A value of two bytes takes protobuf 45 bytes of memory, and Python a hundred more. This reads the lengths and tags
    alone, and stops at the first that is too many; it skips arrays and text.
    """
    view, at, left = memoryview(data), 0, most
    fields = _FIELDS_OF_A_VALUE * most + _SPARE_FIELDS
    kind, end = _VALUE, len(data)
    outer = list[tuple[int, int]]()
    while True:
        while at >= end:
            if not outer:
                return
            kind, end = outer.pop()
        tag = data[at]
        at += 1
        if tag > 0x7F:
            tag, at = read_varint(view, at - 1)
        fields -= 1
        if fields < 0:
            raise _too_many(most)
        wire = tag & 7
        if wire == _BYTES:
            length, at = (data[at], at + 1) if at < end and data[at] < 0x80 else read_varint(view, at)
            if length > end - at:
                raise ValueError(f"a field claims {length} bytes, and {end - at} are left")
            child = _CHILDREN[kind].get(tag)
            if child is None:
                if kind == _ARRAY and tag == _SHAPE and length > _DIMENSIONS_BYTES:
                    raise ValueError("an array must have at most 32 dimensions")
                at += length
                continue
            if child == _ENTRY or kind == _VALUES:
                left -= 1
                if left < 0:
                    raise _too_many(most)
            if len(outer) >= _LEVELS:
                raise ValueError("a value must be at most 24 levels deep, got one that is deeper")
            outer.append((kind, end))
            kind, end = child, at + length
        elif wire == _VARINT:
            _, at = read_varint(view, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"a field has the unknown wire type {wire}")
        if at > end and wire != _BYTES:
            raise ValueError("a field is truncated")


def _too_many(most: int) -> ValueError:
    return ValueError(f"a value holds too many values, over {most}; send arrays instead of long lists")
