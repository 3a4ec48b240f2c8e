"""The element specs of a mixture's sources -> the one list of fields that all of them share."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixserve.sources import AnySource
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.fields import Field
from mixserve_client.schema.tree import flatten

Leaves = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class NoNumbers(ValueError):
    """The records of a source are no arrays of numbers, so they can be iterated but make no batches."""


def numeric_leaves(name: str, source: AnySource) -> Leaves:
    """Shape and dtype of every leaf of the source's records, sorted by name. Raises NoNumbers."""
    try:
        leaves = {
            leaf: (tuple(spec.shape), np.dtype(spec.dtype)) for leaf, spec in flatten(source.element_spec()).items()
        }
    except OSError:
        raise  # another time the source may well have one
    except Exception as error:  # whatever the source raises
        raise NoNumbers(f"{_only_iterable(name)}; its element_spec says: {error}") from error
    for leaf, (shape, dtype) in leaves.items():
        check_text(f"the name of a leaf of the source {name!r}", leaf)
        if any(dim < 0 for dim in shape):
            raise ValueError(f"the leaf {leaf!r} of the source {name!r} cannot have the shape {list(shape)!r:.100}")
        try:
            dtype_name(dtype)
        except TypeError as error:
            raise NoNumbers(f"{_only_iterable(name)}: leaf {leaf!r}: {error}") from error
    return leaves


def check_text(what: str, text: str) -> None:
    """Raises ValueError for a name that no message can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # lone surrogates, as names of files may have them
        raise ValueError(f"{what} must be text that UTF-8 can hold, got {text!r:.100}") from error


def _only_iterable(name: str) -> str:
    return (
        f"the source {name!r} has no numeric element_spec, so its records can be iterated, but get_batch_at and "
        "element_spec are not possible"
    )


def common_fields(specs: Mapping[str, Leaves]) -> tuple[Field, ...]:
    """The fields of every element, sorted by name, from the leaves of each source by its name.

    Raises ValueError where two sources differ in structure, shape or dtype, naming both and the leaf.
    """
    names = list(specs)
    first = specs[names[0]]
    for name, leaves in specs.items():
        between = f"the sources {names[0]!r} and {name!r} must have one element_spec"
        if leaves.keys() != first.keys():
            leaf = min(leaves.keys() ^ first.keys())
            has, lacks = (names[0], name) if leaf in first else (name, names[0])
            raise ValueError(f"{between}: {has!r} has the leaf {leaf!r}, {lacks!r} has not")
        for leaf, expected in first.items():
            if leaves[leaf] != expected:
                raise ValueError(
                    f"{between}: the leaf {leaf!r} is {_shown(expected)} in {names[0]!r} and "
                    f"{_shown(leaves[leaf])} in {name!r}"
                )
    return tuple(Field(leaf, dtype, shape) for leaf, (shape, dtype) in first.items())


def _shown(described: tuple[tuple[int, ...], np.dtype]) -> str:
    shape, dtype = described
    return f"{dtype.name}{list(shape)}"
