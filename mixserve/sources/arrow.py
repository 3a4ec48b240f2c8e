"""Arrow's types and arrays -> layouts and pieces of columns, without copying. Loads pyarrow when it is used."""

import importlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from mixserve.sources.column import Layout, Piece
from mixserve.sources.fields import Stored

# Anything of pyarrow, which has no types for checkers.
Arrow = Any

_DTYPES = {"halffloat": "float16", "float": "float32", "double": "float64"} | {
    f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def import_arrow(module: str = "pyarrow") -> Arrow:
    """The module of pyarrow. Raises ImportError, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"pyarrow is needed for Arrow and Parquet files: pip install 'mixserve[arrow]' ({error})"
        ) from error


@cache
def _types() -> Arrow:
    return import_arrow("pyarrow.types")


class Unservable(ValueError):
    """A column has a type that batches cannot have. The message says why."""


class NullFound(ValueError):
    """An array has a null value in its row `row`; `is_inner` if it is a list inside of a list."""

    def __init__(self, row: int, *, is_inner: bool = False):
        super().__init__(f"row {row} is null")
        self.row, self.is_inner = row, is_inner


def stored_fields(schema: Arrow) -> dict[str, Stored | str]:
    """The stored field of every column, or why it cannot be served."""
    found: dict[str, Stored | str] = {}
    for field in schema:
        try:
            found[field.name] = layout_of(field.type).stored
        except Unservable as error:
            found[field.name] = str(error)
    return found


def layout_of(kind: Arrow) -> Layout:
    """The layout of a column of the Arrow type `kind`. Raises Unservable."""
    types = _types()
    if types.is_dictionary(kind):
        if not (types.is_string(kind.value_type) or types.is_large_string(kind.value_type)):
            raise Unservable(f"it is {kind}, and only dictionaries of strings are served, as their int32 codes")
        return layout_of(kind.index_type)._replace(stored=Stored(np.dtype(np.int32)))
    offsets = _offsets(kind)
    if offsets is None:
        return _fixed_layout(kind, kind)
    if not hasattr(kind, "value_type"):
        return Layout(Stored(np.dtype(np.uint8), is_ragged=True), np.dtype(np.uint8), offsets=offsets)
    item = _fixed_layout(kind.value_type, kind)
    return item._replace(stored=Stored(item.stored.dtype, item.stored.shape, is_ragged=True), offsets=offsets)


def _fixed_layout(kind: Arrow, whole: Arrow) -> Layout:
    types = _types()
    size = _fixed_size(kind)
    if size == 0:
        raise Unservable(f"it is {whole}, which has no values")
    if size is not None and types.is_fixed_size_list(kind):
        item = _fixed_layout(kind.value_type, whole)
        return item._replace(stored=Stored(item.stored.dtype, (size, *item.stored.shape)))
    if size is not None:
        return Layout(Stored(np.dtype(np.uint8), (size,)), np.dtype(np.uint8))
    if types.is_boolean(kind):
        return Layout(Stored(np.dtype(bool)), np.dtype(bool), bits=True)
    if str(kind) not in _DTYPES:
        raise Unservable(f"it is {whole}, and {_reason(kind)}")
    dtype = np.dtype(_DTYPES[str(kind)])
    return Layout(Stored(dtype), dtype)


def _reason(kind: Arrow) -> str:
    types = _types()
    reasons: Sequence[tuple[Callable[[Arrow], bool], str]] = (
        (types.is_temporal, "batches have no times: store them as int64"),
        (types.is_decimal, "batches have no decimals: store them as float64 or int64"),
        (types.is_map, "batches have no maps: store keys and values as two lists"),
        (types.is_struct, "a struct has members: store each as a column (images must be decoded before)"),
        (lambda kind: _offsets(kind) is not None, "only the first axis may be ragged: use fixed-size lists inside"),
        (types.is_null, "all its values are null"),
    )
    return next((said for is_one, said in reasons if is_one(kind)), f"no dtype of batches can hold {kind}")


@lru_cache(256)
def _offsets(kind: Arrow) -> np.dtype | None:
    """The dtype of the offsets of a ragged column; None for other types."""
    types = _types()
    if types.is_list(kind) or types.is_string(kind) or types.is_binary(kind):
        return np.dtype(np.int32)
    if types.is_large_list(kind) or types.is_large_string(kind) or types.is_large_binary(kind):
        return np.dtype(np.int64)
    return None


@lru_cache(256)
def _fixed_size(kind: Arrow) -> int | None:
    """The number of items of lists, or of bytes, that all have one length; None for other types."""
    types = _types()
    if types.is_fixed_size_list(kind):
        return kind.list_size
    # A decimal is fixed-size binary to Arrow.
    return kind.byte_width if types.is_fixed_size_binary(kind) and not types.is_decimal(kind) else None


def find_piece(name: str, array: Arrow, first_row: int, *, nulls: bool) -> Piece:
    """Where the rows of the column `name` lie; the first of them is `first_row` in its file. Raises ValueError, which
    names the column, for null values that are not allowed and for damaged arrays."""
    try:
        piece, layout = piece_of(array, nulls=nulls), layout_of(array.type)
        if layout.offsets is None and piece.first + piece.rows * layout.width > piece.stored:
            raise ValueError(f"a block has {piece.rows:,} rows, and values for fewer: the file is damaged")
        return piece
    except NullFound as found:
        said = "a list inside of a list that is null" if found.is_inner else "a null value"
        advice = "" if found.is_inner else "; give the field a value for them, such as null: 0"
        raise ValueError(f"the field {name!r:.100} has {said}, in row {first_row + found.row:,}{advice}") from None
    except ValueError as error:
        raise ValueError(f"the field {name!r:.100}: {error}") from error


def piece_of(array: Arrow, *, nulls: bool) -> Piece:
    """Where the rows of `array` lie; its type has a layout.

    Raises NullFound for the first null, unless `nulls` are allowed, and ValueError if buffers are too small.
    """
    types = _types()
    if array.null_count and not nulls:
        raise NullFound(_row_with_a_null(array, or_null=True) or 0)
    if types.is_dictionary(array.type):
        array = array.indices
    offsets = _offsets(array.type)
    valid = _bitmap(array)
    if offsets is None:
        leaf, first, is_inner = _leaf(array, 0)
        at = 0
    else:
        ends = array.offset + len(array) + 1 if len(array) else 0
        at = _part(array.buffers()[1], ends * offsets.itemsize).at(array.offset * offsets.itemsize)
        if not hasattr(array, "values"):
            data = _part(array.buffers()[2], 0)
            return Piece(len(array), data.address, data.size, 0, at, *valid)
        leaf, first, is_inner = _leaf(array.values, 0)
    is_item = leaf is not array
    if is_item and (is_inner or (leaf.null_count and not nulls)):
        # The null may be outside of this slice, or in a row that is null itself.
        row = _row_with_a_null(array)
        if row is not None:
            raise NullFound(row, is_inner=is_inner)
    size = _fixed_size(leaf.type) or 1
    count = (leaf.offset + len(leaf)) * size
    bits = types.is_boolean(leaf.type)
    need = -(-count // 8) if bits else count * (1 if size > 1 else leaf.type.bit_width // 8)
    data = _part(leaf.buffers()[1], need)
    return Piece(len(array), data.address, count, first, at, *valid, *(_bitmap(leaf, whole=True) if is_item else ()))


def _leaf(array: Arrow, row: int) -> tuple[Arrow, int, bool]:
    """The array of the values of fixed-size lists, the number in its buffer of the first value of the row `row`, and
    whether lists inside of lists are null."""
    types = _types()
    size, row = _fixed_size(array.type), row + array.offset
    if size is None or not types.is_fixed_size_list(array.type):
        return array, row * (size or 1), False
    inner = array.values
    leaf, first, is_inner = _leaf(inner, row * size)
    return leaf, first, is_inner or (leaf is not inner and inner.null_count > 0)


class _Part(NamedTuple):
    """A buffer; its address is 0 if it is empty."""

    address: int
    size: int

    def at(self, offset: int) -> int:
        return self.address + offset if self.address else 0


def _part(buffer: Arrow, least: int) -> _Part:
    found = _Part(buffer.address, buffer.size) if buffer is not None and buffer.size else _Part(0, 0)
    if found.size < least:
        raise ValueError(f"a buffer has {found.size} bytes where {least} are needed")
    return found


def _bitmap(array: Arrow, *, whole: bool = False) -> tuple[int, int]:
    """Address and first bit of the bitmap of what is not null, or 0, 0; with `whole`, of the whole buffer."""
    if not array.null_count:
        return 0, 0
    return _part(array.buffers()[0], -(-(array.offset + len(array)) // 8)).address, 0 if whole else array.offset


def _row_with_a_null(array: Arrow, *, or_null: bool = False) -> int | None:
    """The first row that has a null among its values, or is null; slow, for messages. Raises ArrowInvalid if data are
    damaged."""
    array.validate(full=True)  # otherwise a damaged array ends the process
    for row, value in enumerate(array):
        is_null = or_null if not value.is_valid else hasattr(array, "values") and _has_null(value.as_py())
        if is_null:
            return row
    return None


def _has_null(value: Any) -> bool:
    return any(_has_null(item) for item in value) if isinstance(value, list) else value is None
