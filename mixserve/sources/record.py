"""A source and an index -> that one record, through whichever method the source has."""

from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np

from mixserve.error_boundary import WrongRecord, user_code
from mixserve.failed_read import Read, at_index
from mixserve_client.schema.fields import Field
from mixserve_client.schema.tree import flatten


def read_record(source: Any, index: int) -> Any:
    """The record, from `_getitems`, else `__getitem__`, else `take` or `get_batch_at` of one record.

    Raises StrayEnd if the source raises what ends loops, such as StopIteration; else what the source raises.
    """
    with user_code("reading the record {} of {!r:.200}", index, source):
        return _read(source, index)


class RecordCheck:
    """Checks that a record has exactly the declared fields, with their dtypes and shapes.

    With `as_jax`, dtypes are equal if JAX would give them the same dtype: without x64 it narrows 64 bits to 32.
    """

    def __init__(self, fields: Sequence[Field], *, as_jax: bool):
        self._fields = [(field.name, np.dtype(field.dtype), field.shape) for field in fields]
        # Without nesting, the names of leaves are the keys of the record.
        self._is_flat = not any(not field.name or "/" in field.name or "~" in field.name for field in fields)
        self._as_jax = as_jax

    def check(self, record: Any, index: int, read: Read | None = None) -> None:
        """Raises WrongRecord if `record`, at `index` of an epoch, is not as declared. `read` says where it is from."""
        if not (self._is_flat and self._is_plain(record)):
            try:
                self._check_leaves(record, at_index(index, read))
            except WrongRecord as error:
                error.read, error.position = read, index
                raise

    def _is_plain(self, record: Any) -> bool:
        """Whether the record is a flat dict of arrays as declared: nearly all are, and this takes a microsecond."""
        if type(record) is not dict or len(cast(dict[Any, Any], record)) != len(self._fields):
            return False
        for name, dtype, shape in self._fields:
            leaf = cast(dict[Any, Any], record).get(name)
            if not isinstance(leaf, np.ndarray | np.generic) or leaf.dtype != dtype or leaf.shape != shape:
                return False
        return True

    def _check_leaves(self, record: Any, where: str) -> None:
        try:
            with user_code("{}", where):
                leaves = {name: np.asarray(leaf) for name, leaf in flatten(record).items()}
        except (TypeError, ValueError) as error:
            raise WrongRecord(f"{where} cannot be read: {error!s:.300}") from error
        for name in leaves.keys() ^ {name for name, _, _ in self._fields}:
            said = "a leaf that the mixture does not declare" if name in leaves else "no leaf of that name"
            raise WrongRecord(f"{where} has {said}: {name!r:.100}")
        for name, dtype, shape in self._fields:
            leaf = leaves[name]
            if leaf.shape != shape or not _is_same(leaf.dtype, dtype, as_jax=self._as_jax):
                raise WrongRecord(
                    f"{where} must have the leaf {name!r:.100} as {dtype}{list(shape)}, as the mixture declares, got "
                    f"{leaf.dtype}{list(leaf.shape)}"
                )


def _is_same(dtype: np.dtype, declared: np.dtype, *, as_jax: bool) -> bool:
    if dtype == declared:
        return True
    return as_jax and jax.dtypes.canonicalize_dtype(dtype) == jax.dtypes.canonicalize_dtype(declared)


def _read(source: Any, index: int) -> Any:
    batched: Any = getattr(source, "_getitems", None)
    if batched is not None:
        return batched([index])[0]
    single: Any = getattr(source, "__getitem__", None)
    if single is not None:
        record = single(index)
        if record is not None:  # the reference's base class returns None if a source has no single records
            return record
    if callable(getattr(source, "take", None)):
        return jax.tree.map(lambda leaf: leaf[0], source.take(np.array([index])))
    return jax.tree.map(lambda leaf: leaf[0], source.get_batch_at(index, 1))
