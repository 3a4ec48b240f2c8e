"""Bytes of one record -> arrays, for records that are raw bytes, an `.npy` file or JSON."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any, Protocol, cast

import numpy as np

from mixserve.sources.fields import FieldSpec, Served, Stored
from mixserve_client.schema.text import show


class Decoder(Protocol):
    """What a record has in it: stored fields, and how to read some of them.

    A record is bytes, or what else a source's files give.
    """

    def stored(self, records: Iterable[Any], wanted: Sequence[FieldSpec] | None) -> Mapping[str, Stored | str]:
        """The stored fields, as in the first record; fields that it lacks, as in the first record that has them.

        Raises ValueError if a record cannot be decoded.
        """
        ...

    def decode(self, record: Any, fields: Sequence[Served]) -> list[np.ndarray]:
        """The stored values of these fields. Raises ValueError, which names the field, if the record has none."""
        ...


class BytesDecoder:
    """The whole record is one field: its bytes."""

    def __init__(self, field: str):
        self._field = field

    def stored(self, records: Iterable[bytes], wanted: Sequence[FieldSpec] | None) -> Mapping[str, Stored]:
        return {self._field: stored_bytes(next(iter(records)), self._field, wanted)}

    def decode(self, record: bytes, fields: Sequence[Served]) -> list[np.ndarray]:
        return [np.frombuffer(record, np.uint8)] * len(fields)


class NpyDecoder:
    """The whole record is one field: an array, as `numpy.save` writes it."""

    def __init__(self, field: str):
        self._field = field

    def stored(self, records: Iterable[bytes], wanted: Sequence[FieldSpec] | None) -> Mapping[str, Stored]:
        return {self._field: stored_like(read_npy(next(iter(records))), self._field, wanted)}

    def decode(self, record: bytes, fields: Sequence[Served]) -> list[np.ndarray]:
        return [read_npy(record)] * len(fields)


class JsonDecoder:
    """The record is a JSON object: its fields are numbers, booleans, lists of them in any depth, or texts, which are
    ragged bytes of UTF-8.

    Numbers without a fraction are int64, others float64; since JSON has no dtypes, `as` may be any other that holds the
    record's numbers, and any float for those with a fraction.
    """

    def stored(self, records: Iterable[bytes], wanted: Sequence[FieldSpec] | None) -> Mapping[str, Stored | str]:
        return first_of_each(map(_object, records), wanted, lambda value, name: _stored_value(value, name, wanted))

    def decode(self, record: bytes, fields: Sequence[Served]) -> list[np.ndarray]:
        found = _object(record)
        return [_json_value(found, field, record) for field in fields]


_READ_FOR_FIELDS = 64


def first_of_each(
    records: Iterable[Mapping[str, Any]], wanted: Sequence[FieldSpec] | None, stored: Any
) -> dict[str, Stored | str]:
    """What `stored(value, name)` says of the fields of the first record, and of `wanted` ones in the first few records
    that have them."""
    found: dict[str, Stored | str] = {}
    names = None if wanted is None else {spec.source for spec in wanted}
    for number, record in enumerate(records):
        for name in record:
            if name not in found and (number == 0 or names is None or name in names):
                found[name] = stored(record[name], name)
        if names is None or names <= found.keys() or number == _READ_FOR_FIELDS:
            break
    return found


def wanted_of(name: str, wanted: Sequence[FieldSpec] | None) -> tuple[bool, np.dtype | None]:
    """Whether the stored field `name` is wanted as a ragged one, and the one dtype in which it is wanted."""
    specs = [spec for spec in wanted or () if spec.source == name]
    dtypes = {spec.dtype for spec in specs}
    return any(spec.length is not None for spec in specs), dtypes.pop() if len(dtypes) == 1 else None


def stored_bytes(data: bytes, name: str, wanted: Sequence[FieldSpec] | None) -> Stored:
    """The stored field of these bytes: ragged, unless it is wanted without a length."""
    is_fixed = any(spec.source == name and spec.length is None for spec in wanted or ())
    return Stored(np.dtype(np.uint8), (len(data),) if is_fixed else (), is_ragged=not is_fixed, is_text=True)


def stored_like(array: np.ndarray, name: str, wanted: Sequence[FieldSpec] | None) -> Stored:
    """The stored field of which `array` is the value in a record: ragged if it is wanted with a length."""
    is_ragged = array.ndim > 0 and wanted_of(name, wanted)[0]
    return Stored(array.dtype, array.shape[1:] if is_ragged else array.shape, is_ragged)


def missing(field: Served) -> np.ndarray:
    """The value of a field that a record lacks. Raises ValueError if the field has no default."""
    spec, stored = field.spec, field.stored
    if spec.default is None:
        raise ValueError(
            f"the record lacks the field {spec.source!r:.100}; if records may lack it, give fields.{spec.name} a "
            "default (a number, or [] if it has a length)"
        )
    if stored.is_ragged:
        return np.empty((0, *stored.shape), stored.dtype)
    return np.full(stored.shape, spec.default, stored.dtype)


def to_integers(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Integers in another integer dtype. Raises ValueError if one does not fit."""
    if array.dtype == dtype:
        return array
    cast = array.astype(dtype)
    if not (cast == array).all():
        raise ValueError(f"has values from {array.min()} to {array.max()}, which do not all fit into as: {dtype}")
    return cast


def to_int(data: bytes) -> int:
    """The decimal number in these bytes. Raises ValueError; Python would also take `4_5`, and that is not 45."""
    if b"_" in data:
        raise ValueError("has an underscore")
    return int(data)


def to_float(data: bytes) -> float:
    """The decimal number in these bytes. Raises ValueError, also for a finite one that would become infinite."""
    found = float(data)
    if b"_" in data or (math.isinf(found) and b"inf" not in data.lower()):
        raise ValueError("has an underscore, or is too large")
    return found


def read_npy(data: bytes) -> np.ndarray:
    """The array in an `.npy` file, in native byte order. Raises ValueError if it is none, or one of objects."""
    length_size = 2 if data[6:7] == b"\x01" else 4
    begin = 8 + length_size
    end = begin + int.from_bytes(data[8:begin], "little")
    dtype, shape, is_fortran = _npy_header(data[:end])
    count = math.prod(shape)
    if min(shape, default=0) < 0 or len(data) != end + count * dtype.itemsize:
        raise ValueError(f"the .npy array has {len(data) - end} bytes of values, and needs {count * dtype.itemsize}")
    array = np.frombuffer(data, dtype, count, end) if count else np.empty(0, dtype)
    array = array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


@lru_cache(256)  # nearly all records have the same few
def _npy_header(head: bytes) -> tuple[np.dtype, tuple[int, ...], bool]:
    file = BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except MemoryError:
        raise
    except Exception as error:  # NumPy takes the header for Python, and garbled ones raise errors of many classes
        raise ValueError(f"it is not an .npy array: {error}") from None
    if dtype.hasobject or dtype.names is not None or dtype.kind in "SUV":
        raise ValueError(f"an .npy array of {dtype} cannot be served: it must be of numbers")
    return dtype, shape, is_fortran


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from None


def _object(record: bytes) -> dict[str, Any]:
    found = _parse(record)
    if not isinstance(found, dict):
        raise ValueError(f"it must be a JSON object with the fields by name, got {show(found)}")
    return found


def stored_json(data: bytes, name: str, wanted: Sequence[FieldSpec] | None) -> Stored | str:
    """The stored field of a JSON text that is its value, or why it cannot be served."""
    return _stored_value(_parse(data), name, wanted)


def json_array(data: bytes, field: Served) -> np.ndarray:
    """The value of a field that is a JSON text of its own. Raises ValueError."""
    return _array(_parse(data), field, data)


def _stored_value(value: Any, name: str, wanted: Sequence[FieldSpec] | None) -> Stored | str:
    if isinstance(value, str):
        return stored_bytes(value.encode(), name, wanted)
    try:
        stored = stored_like(_numbers(value), name, wanted)
    except ValueError as error:
        return str(error)
    dtype = wanted_of(name, wanted)[1]
    is_possible = dtype is not None and (
        (stored.dtype.kind == "i" and dtype.kind in "iu")
        or (stored.dtype.kind in "if" and np.issubdtype(dtype, np.floating))
    )
    return Stored(dtype, stored.shape, stored.is_ragged) if is_possible and dtype is not None else stored


def _json_value(record: Mapping[str, Any], field: Served, data: bytes) -> np.ndarray:
    value = record.get(field.spec.source)
    if value is None:
        return missing(field)
    try:
        return _array(value, field, data)
    except ValueError as error:
        raise name_field(error, field) from None


def _array(value: Any, field: Served, data: bytes) -> np.ndarray:
    """The array of `value`, which the JSON text `data` has."""
    dtype = field.stored.dtype
    if isinstance(value, str) != field.stored.is_text:
        refuse_text(field, show(value))
    if isinstance(value, str):
        return np.frombuffer(value.encode(), np.uint8)
    array = _numbers(value)
    if array.size == 0 and field.stored.is_ragged:
        return np.empty((0, *field.stored.shape), dtype)
    if array.dtype.kind == "f":
        if _is_small(array):
            return array.astype(dtype) if dtype.kind == "f" else array
        _check_integers(value)
        json.loads(data, parse_float=_check_finite)
    if array.dtype.kind == "i" and dtype.kind in "iu":
        return to_integers(array, dtype)
    return _to_floats(array, dtype) if array.dtype.kind in "if" and dtype.kind == "f" else array


def refuse_text(field: Served, found: str) -> None:
    """Raises ValueError: a record has text or bytes for numbers, or the other way round. As bytes, a text would be
    numbers too."""
    what = "text or bytes" if field.stored.is_text else "numbers"
    raise ValueError(f"must be {what}, as in the first record that has it, got {found}")


def _is_small(array: np.ndarray) -> bool:
    """Whether all absolute values are surely below 2^11, up to which float16 has all integers."""
    if array.ndim == 0:
        return abs(array.item()) < 1 << 11
    flat = array.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return flat.dot(flat).item() < 1 << 22  # a third of the time of looking at each


def _check_finite(text: str) -> float:
    if math.isinf(found := float(text)):
        raise ValueError(f"has the number {show(text)}, which is too large for float64; infinity is Infinity there")
    return found


def _to_floats(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers in a float dtype. Raises ValueError if an integer would be rounded, or another number become infinite;
    fractions are rounded, as they are when JSON is read."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        made = array.astype(dtype)
        is_held = np.isfinite(made)
        if array.dtype.kind == "i":
            is_held &= made.astype(np.float64).astype(np.int64) == array
        else:
            is_held |= ~np.isfinite(array)
    if not is_held.all():
        raise ValueError(f"has the number {array[~is_held].flat[0]}, which {dtype} does not have; choose a wider as:")
    return made


def _numbers(value: Any) -> np.ndarray:
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        raise ValueError("has lists of different lengths inside") from None
    if array.dtype.kind not in "bif":
        raise ValueError(f"must be numbers of up to 64 bits, lists of them, or a text, got {show(value)}")
    return array


def _check_integers(value: Any) -> None:
    """Raises ValueError if an integer among floats is rounded."""
    if isinstance(value, list):
        for item in cast(list[Any], value):
            _check_integers(item)
    elif isinstance(value, int) and int(float(value)) != value:
        raise ValueError(f"has the integer {value} among other numbers, and float64 does not have it")


def name_field(error: ValueError, field: Served) -> ValueError:
    """The error of reading a field, with the field's name."""
    return ValueError(f"the field {field.spec.source!r:.100} {error}")
