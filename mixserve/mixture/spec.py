"""The element specs of a mixture's sources -> the one list of fields that all of them share."""

from collections.abc import Sequence

import numpy as np

from mixserve.sources import ElementSpec
from mixserve_client.wire.description import Field
from mixserve_client.wire.dtypes import dtype_name
from mixserve_client.wire.tree import flatten


def common_fields(names: Sequence[str], specs: Sequence[ElementSpec]) -> tuple[Field, ...]:
    """The fields of every element, sorted by name.

    Raises ValueError where two sources differ in structure, shape or dtype, naming both and the leaf, and where a
    leaf's dtype has no place on the wire.
    """
    first = _leaves(specs[0])
    for name, spec in zip(names[1:], specs[1:], strict=True):
        leaves = _leaves(spec)
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
    return tuple(_field(names[0], leaf, first[leaf]) for leaf in first)


def _leaves(spec: ElementSpec) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    return {name: (tuple(leaf.shape), np.dtype(leaf.dtype)) for name, leaf in flatten(spec).items()}


def _field(source: str, leaf: str, described: tuple[tuple[int, ...], np.dtype]) -> Field:
    shape, dtype = described
    try:
        dtype_name(dtype)
    except TypeError as error:
        raise ValueError(
            f"the element_spec of the source {source!r} cannot be served, leaf {leaf!r}: {error}"
        ) from error
    return Field(leaf, dtype, shape)


def _shown(described: tuple[tuple[int, ...], np.dtype]) -> str:
    shape, dtype = described
    return f"{dtype.name}{list(shape)}"
