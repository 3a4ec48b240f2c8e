"""What counts as an array in records: `{"tokens": [1, 2, 3]}` has one field, not three."""

from collections.abc import Mapping
from numbers import Number
from typing import Any, cast

import numpy as np

from mixserve_client.schema.text import show


def is_array(value: Any) -> bool:
    """Whether `value` is an array of NumPy, JAX, PyTorch or another library."""
    return hasattr(value, "dtype") and hasattr(value, "shape")


def how_to_wrap(value: Any) -> str:
    """What makes a source of `value`, which is none: the end of an error message."""
    if isinstance(value, type):
        return ", which is a class: make an object of it"
    if isinstance(value, Mapping) or is_array(value):
        return "; wrap an array, or a dict of arrays, in an ArraySource"
    return "; wrap an object that has __len__ and __getitem__ in a RandomAccessSource"


def to_arrays(tree: Any, where: str = "") -> Any:
    """`tree` with an array in place of each list of numbers, or of equally long lists of numbers; the rest stays as it
    is. `where` is the path of `tree` for errors.

    Raises ValueError if the lists in a list of numbers have different lengths.
    """
    if isinstance(tree, Mapping):
        return _of_mapping(cast(Mapping[Any, Any], tree), where)
    if not isinstance(tree, list | tuple):
        return tree
    items = cast("list[Any] | tuple[Any, ...]", tree)
    array = _array(cast(list[Any], items), where) if isinstance(items, list) else None
    if array is not None:
        return array
    made = [to_arrays(item, f"{where}/{place}") for place, item in enumerate(items)]
    if all(one is other for one, other in zip(made, items, strict=True)):
        return items
    # A named tuple takes its items one by one.
    return made if isinstance(items, list) else type(items)(*made) if hasattr(items, "_fields") else tuple(made)


def _of_mapping(mapping: Mapping[Any, Any], where: str) -> Any:
    # Nearly all records are flat dicts of arrays, which need no copy.
    if not any(isinstance(child, list | tuple | Mapping) for child in mapping.values()):
        return mapping
    return {key: to_arrays(child, f"{where}/{key}" if where else str(key)) for key, child in mapping.items()}


def _array(items: list[Any], where: str) -> np.ndarray | None:
    """`items` as an array of numbers; None if they hold anything else."""
    first: Any = items
    while isinstance(first, list) and first:
        first = cast(list[Any], first)[0]
    if not isinstance(first, Number | np.bool_):  # an array in a list is a field of its own
        return None
    try:
        array = np.asarray(items)
    except ValueError:
        if _has_only_numbers(items):
            raise ValueError(
                f"the lists in {where or 'a record'} must have equal lengths, got {show(items, 100)}: pad them, or cut "
                "them into windows of one length"
            ) from None
        return None
    return array if array.dtype.kind in "biufc" and _has_only_numbers(items) else None


def _has_only_numbers(items: list[Any]) -> bool:
    return all(
        _has_only_numbers(cast(list[Any], item)) if isinstance(item, list) else isinstance(item, Number | np.bool_)
        for item in items
    )
