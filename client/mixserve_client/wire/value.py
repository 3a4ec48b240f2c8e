"""Trees of arrays and scalars, such as states, statistics and single records <-> bytes, without pickle."""

from collections.abc import Iterable, Mapping, Sized
from math import prod
from typing import Any, cast

import numpy as np
from google.protobuf.message import DecodeError

from mixserve_client.schema.dtypes import dtype_name, dtype_named
from mixserve_client.wire._generated import state_pb2

DEPTH_LIMIT = 24
# The levels of a state around its statistics, and one more of the request that carries it.
STATE_LEVELS = 3
_DIMENSIONS_LIMIT = 32
_INTEGER_LIMIT = 1 << 63


def encode_value(value: Any, *, more_levels: int = 0) -> bytes:
    """The Value message of None, bools, ints of 64 bits, floats, strings, arrays, and dicts, lists and tuples of them.

    Arrays are everything that NumPy converts to one, also JAX arrays and NumPy scalars. Keys of dicts are strings or
    integers. A value may have 24 levels, and `more_levels` in addition.

    Raises TypeError for other types, and ValueError for values that are too deep or too large; both name the place.
    """
    message = state_pb2.Value()
    _fill(message, value, "", -more_levels)
    return message.SerializeToString()


def decode_value(data: bytes, *, more_levels: int = 0) -> Any:
    """The tree in a Value message; its arrays are read-only. Raises ValueError if it is unreadable or too deep."""
    try:
        message = state_pb2.Value.FromString(data)
    except DecodeError as error:
        raise ValueError(f"{len(data)} bytes are not a mixserve.v1.Value message") from error
    return value_of(message, more_levels=more_levels)


def value_message(value: Any, *, more_levels: int = 0) -> state_pb2.Value:
    """Like `encode_value`, but returns the message itself."""
    message = state_pb2.Value()
    _fill(message, value, "", -more_levels)
    return message


def value_of(message: state_pb2.Value, *, more_levels: int = 0, most_values: int | None = None) -> Any:
    """Like `decode_value`, from the message itself; the tree may have up to `most_values` values (None: no limit)."""
    return _read(message, -more_levels, None if most_values is None else [most_values])


def _read(message: state_pb2.Value, depth: int, left: list[int] | None) -> Any:
    """The tree in `message`, which is at that depth; `left[0]` counts how many more values the whole tree may have."""
    if depth > DEPTH_LIMIT:
        raise ValueError(f"a value must be at most {DEPTH_LIMIT} levels deep, got one that is deeper")
    kind = message.WhichOneof("kind")
    match kind:
        case "none":
            return None
        case "flag" | "integer" | "number" | "text":
            return getattr(message, kind)
        case "array":
            return _read_array(message.array)
        case "list":
            values = message.list.values
            _count(values, left)
            return [_read(child, depth + 1, left) for child in values]
        case "tuple":
            values = message.tuple.values
            _count(values, left)
            return tuple([_read(child, depth + 1, left) for child in values])
        case "dict":
            _count(message.dict.entries, left)
            return _read_dict(message.dict, depth, left)
        case _:
            raise ValueError("a value must have a kind that this version knows; is its sender newer?")


def _count(children: Sized, left: list[int] | None) -> None:
    if left is not None:
        left[0] -= len(children)
        if left[0] < 0:
            raise ValueError(
                f"a value holds too many values, at least {-left[0]} over the limit; send arrays instead of long lists"
            )


def _fill(message: state_pb2.Value, value: Any, path: str, depth: int) -> None:
    if depth > DEPTH_LIMIT:
        raise ValueError(f"a value must be at most {DEPTH_LIMIT} levels deep, got {path:.100}…")
    if value is None:
        message.none = True
    elif isinstance(value, bool):  # before int, of which bool is a subclass
        message.flag = value
    elif isinstance(value, int):
        if not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            raise ValueError(f"{path or 'the value'} must be an integer of 64 bits, got {value.bit_length()} bits")
        message.integer = value
    # np.float64 and np.str_ are subclasses of float and str; as arrays they keep their dtypes.
    elif isinstance(value, float) and not isinstance(value, np.generic):
        message.number = value
    elif isinstance(value, str) and not isinstance(value, np.generic):
        try:
            message.text = value
        except ValueError as error:  # lone surrogates
            raise ValueError(f"{path or 'the value'} must be text that UTF-8 can encode, got {value!r:.100}") from error
    elif isinstance(value, Mapping):
        message.dict.SetInParent()
        for key, child in cast(Mapping[Any, Any], value).items():
            _add_entry(message.dict, key, child, path, depth)
    elif isinstance(value, list):
        message.list.SetInParent()
        _add_values(message.list, cast(list[Any], value), path, depth)
    elif isinstance(value, tuple):
        message.tuple.SetInParent()
        _add_values(message.tuple, cast(tuple[Any, ...], value), path, depth)
    else:
        _fill_array(message.array, value, path)


def _add_entry(entries: state_pb2.Entries, key: Any, child: Any, path: str, depth: int) -> None:
    entry = entries.entries.add()
    if isinstance(key, str):
        entry.name = key
    elif isinstance(key, int) and not isinstance(key, bool) and -_INTEGER_LIMIT <= key < _INTEGER_LIMIT:
        entry.number = key
    else:
        raise TypeError(f"keys must be strings or integers of 64 bits, got {key!r:.100} in {path or 'the value'}")
    _fill(entry.value, child, f"{path}/{key}", depth + 1)


def _add_values(values: state_pb2.Values, children: Iterable[Any], path: str, depth: int) -> None:
    for place, child in enumerate(children):
        _fill(values.values.add(), child, f"{path}/{place}", depth + 1)


def _fill_array(message: state_pb2.ArrayValue, value: Any, path: str) -> None:
    array = np.asarray(value)
    if array.ndim > _DIMENSIONS_LIMIT:
        raise ValueError(f"{path or 'the value'} must have at most {_DIMENSIONS_LIMIT} dimensions, got {array.ndim}")
    try:
        message.dtype = dtype_name(array.dtype)
    except TypeError as error:
        raise TypeError(f"{path or 'the value'} is {type(value).__name__}, which is not an array: {error}") from error
    message.shape.extend(array.shape)
    message.data = array.tobytes()


def _read_array(message: state_pb2.ArrayValue) -> Any:
    if len(message.shape) > _DIMENSIONS_LIMIT:
        raise ValueError(f"an array must have at most {_DIMENSIONS_LIMIT} dimensions, got {len(message.shape)}")
    shape = tuple(message.shape)
    try:
        dtype = dtype_named(message.dtype)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    if any(dim < 0 for dim in shape) or prod(shape) * dtype.itemsize != len(message.data):
        raise ValueError(f"an array of shape {shape} and dtype {message.dtype} cannot have {len(message.data)} bytes")
    return np.frombuffer(message.data, np.uint8).view(dtype).reshape(shape)


def _read_dict(message: state_pb2.Entries, depth: int, left: list[int] | None) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for entry in message.entries:
        kind = entry.WhichOneof("key")
        if kind is None:
            raise ValueError("an entry of a dict has no key")
        key = getattr(entry, kind)
        if key in found:
            raise ValueError(f"the key {key!r:.100} comes twice")
        found[key] = _read(entry.value, depth + 1, left)
    return found
