"""Checks of the records in a session's answers, against the mixture's description and the request."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mixserve_client.errors import CorruptReply
from mixserve_client.schema.dtypes import DType
from mixserve_client.schema.fields import Field
from mixserve_client.schema.tree import flatten, is_path

_Kind = tuple[DType, tuple[int, ...]]

# On a server without x64, single records of sources that read through JAX have the narrow dtypes.
_NARROWED = {
    np.dtype(wide): np.dtype(narrow)
    for wide, narrow in (
        *(("int64", "int32"), ("uint64", "uint32")),
        *(("float64", "float32"), ("complex128", "complex64")),
    )
}


def check_record(value: Any, fields: tuple[Field, ...]) -> None:
    """Raises CorruptReply if `value` is not one record of exactly these fields."""
    got = _kinds(value, numbers=True)
    _check_kinds(got, {field.name: (field.dtype, field.shape) for field in fields}, narrowed=True)


def check_records(value: Any, fields: tuple[Field, ...], most: int) -> None:
    """Raises CorruptReply if `value` is not a batch of 1 to `most` records of exactly these fields."""
    _check_rows(value, fields, 1, most, narrowed=True)


def check_rows(value: Any, fields: tuple[Field, ...], size: int) -> None:
    """Raises CorruptReply if `value` is not `size` rows of exactly these fields, in the stored dtypes."""
    _check_rows(value, fields, size, size, narrowed=False)


def _check_rows(value: Any, fields: tuple[Field, ...], least: int, most: int, *, narrowed: bool) -> None:
    if _is_plain(value, fields, least, most):
        return
    got = _kinds(value, numbers=False)
    # All fields must have as many rows as the first one that has a shape.
    rows = next((shape[0] for field in fields if (shape := _shape(got.get(field.name)))), most)
    rows = rows if least <= rows <= most else most
    _check_kinds(got, {field.name: (field.dtype, (rows, *field.shape)) for field in fields}, narrowed=narrowed)


def _is_plain(value: Any, fields: tuple[Field, ...], least: int, most: int) -> bool:
    """Whether `value` is a flat dict of exactly the right arrays. Nearly all are, and this check takes microseconds."""
    if not isinstance(value, dict):
        return False
    leaves = cast(dict[Any, Any], value)
    if len(leaves) != len(fields):
        return False
    rows = -1
    for field in fields:
        kind = _kind(leaves.get(field.name), numbers=False)
        if is_path(field.name) or not (shape := _shape(kind)) or kind[0] != field.dtype:
            return False
        rows = shape[0] if rows < 0 else rows
        if shape != (rows, *field.shape) or not least <= rows <= most:
            return False
    return True


def _kinds(value: Any, *, numbers: bool) -> dict[str, _Kind | str]:
    """The dtype and shape of every leaf by name, or a text if it is not an array. With `numbers` Python's numbers count
    as arrays."""
    try:
        leaves = flatten(value)
    except (TypeError, ValueError) as error:
        raise CorruptReply(f"the session's server sent a value that cannot be a record: {error!s:.300}") from error
    return {name: _kind(leaf, numbers=numbers) for name, leaf in leaves.items()}


def _kind(leaf: Any, *, numbers: bool) -> _Kind | str:
    if numbers and isinstance(leaf, bool | int | float):
        leaf = np.asarray(leaf)
    if not isinstance(leaf, np.ndarray):
        return f"{type(leaf).__name__} {leaf!r:.50}"
    array = cast("npt.NDArray[Any]", leaf)  # a string, since evaluating the type takes longer than the rest
    return array.dtype, array.shape


def _shape(kind: _Kind | str | None) -> tuple[int, ...]:
    return kind[1] if isinstance(kind, tuple) else ()


def _check_kinds(got: dict[str, _Kind | str], expected: dict[str, _Kind], *, narrowed: bool) -> None:
    for name in (*expected, *got):
        if name not in got or name not in expected or not _is_same(got[name], expected[name], narrowed=narrowed):
            raise CorruptReply(
                "the session's server sent a value that does not match its own description: expected in "
                f"{name!r:.100} {_describe(expected.get(name)):.200}, got {_describe(got.get(name)):.200}"
            )


def _is_same(got: _Kind | str, expected: _Kind, *, narrowed: bool) -> bool:
    if got == expected or isinstance(got, str):
        return got == expected
    dtypes = {_NARROWED.get(dtype, dtype) for dtype in (got[0], expected[0])}
    return narrowed and got[1] == expected[1] and len(dtypes) == 1


def _describe(kind: _Kind | str | None) -> str:
    if kind is None:
        return "no such array"
    return kind if isinstance(kind, str) else f"{kind[0]}{list(kind[1])}"
