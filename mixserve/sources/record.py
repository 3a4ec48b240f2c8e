"""A source and an index -> that one record, by whatever way the source has to give single ones."""

from typing import Any

import jax
import numpy as np


def read_record(source: Any, index: int) -> Any:
    """Through `_getitems`, else `__getitem__`, else `take` or `get_batch_at` of one record."""
    batched: Any = getattr(source, "_getitems", None)
    if batched is not None:
        return batched([index])[0]
    single: Any = getattr(source, "__getitem__", None)
    if single is not None:
        record = single(index)
        if record is not None:  # what the reference's base answers where a source has no single records
            return record
    if callable(getattr(source, "take", None)):
        return jax.tree.map(lambda leaf: leaf[0], source.take(np.array([index])))
    return jax.tree.map(lambda leaf: leaf[0], source.get_batch_at(index, 1))
