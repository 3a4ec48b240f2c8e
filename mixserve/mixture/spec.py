"""The element specs of a mixture's sources -> the list of fields that all of them share."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixserve.failed_read import naming_source, read_note
from mixserve.sources import AnySource
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.fields import Field
from mixserve_client.schema.tree import flatten

Leaves = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class NotNumeric(ValueError):
    """The records of a source are not arrays of numbers: they can be iterated, but cannot be put into batches."""


def numeric_leaves(name: str, source: AnySource) -> Leaves:
    """Shape and dtype of every leaf of the source's records, sorted by name.

    Raises NotNumeric if the source has no spec of numbers, ValueError for names and shapes that are not allowed.
    """
    try:
        with naming_source(name, "the element_spec"):
            leaves = {
                leaf: (tuple(spec.shape), np.dtype(spec.dtype)) for leaf, spec in flatten(source.element_spec()).items()
            }
    except OSError:
        raise  # not NotNumeric: the source may have a spec when its disk or network is back
    except Exception as error:  # whatever the source raises
        raise NotNumeric(f"{_only_iterable(name)}; {read_note(error) or error}") from error
    for leaf, (shape, dtype) in leaves.items():
        check_text(f"the name of a leaf of the source {name!r}", leaf)
        if any(dim < 0 for dim in shape):
            raise ValueError(f"the leaf {leaf!r} of the source {name!r} cannot have the shape {list(shape)!r:.100}")
        try:
            dtype_name(dtype)
        except TypeError as error:
            raise NotNumeric(f"{_only_iterable(name)}: leaf {leaf!r}: {error}") from error
    return leaves


def check_text(what: str, text: str) -> None:
    """Raises ValueError if `text` cannot be encoded as UTF-8, which messages need; `what` says what it names."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # lone surrogates, which Python puts into names of files
        raise ValueError(f"{what} must be text that UTF-8 can hold, got {text!r:.100}") from error


def _only_iterable(name: str) -> str:
    return (
        f"the source {name!r} has no numeric element_spec, so its records can be iterated, but it has no batches: "
        "get_batch_at and element_spec need arrays of numbers"
    )


def common_fields(specs: Mapping[str, Leaves]) -> tuple[Field, ...]:
    """The fields of every record, sorted by name; `specs` has the leaves of each source by the source's name.

    Raises ValueError, which names both sources and the leaf, if two sources differ in structure, shape or dtype.
    """
    names = list(specs)
    first = specs[names[0]]
    for name, leaves in specs.items():
        between = f"the sources {names[0]!r} and {name!r} must have the same element_spec"
        if leaves.keys() != first.keys():
            leaf = min(leaves.keys() ^ first.keys())
            has, lacks = (names[0], name) if leaf in first else (name, names[0])
            raise ValueError(f"{between}: {has!r} has the leaf {leaf!r}, {lacks!r} does not")
        for leaf, expected in first.items():
            if leaves[leaf] != expected:
                raise ValueError(
                    f"{between}: the leaf {leaf!r} is {_describe(expected)} in {names[0]!r} and "
                    f"{_describe(leaves[leaf])} in {name!r}"
                )
    return tuple(Field(leaf, dtype, shape) for leaf, (shape, dtype) in first.items())


def _describe(leaf: tuple[tuple[int, ...], np.dtype]) -> str:
    shape, dtype = leaf
    return f"{dtype.name}{list(shape)}"
