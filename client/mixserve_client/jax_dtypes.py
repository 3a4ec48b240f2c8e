"""Batches in JAX's dtypes: without x64, 64-bit values become 32-bit values if they fit."""
# pyright: standard

from typing import Any

import jax
import numpy as np

from mixserve_client.errors import InvalidRequest


def fit_dtypes(batch: Any) -> Any:
    """The batch in JAX's dtypes under the current x64 setting. Raises InvalidRequest if a value does not fit."""

    # Most batches fit as they are, and the walk below takes longer than all else that `device_batches` adds.
    if not any(array.dtype.itemsize >= 8 and array.dtype.kind in "iufc" for array in jax.tree.leaves(batch)):
        return batch

    def fit(path: Any, array: np.ndarray) -> np.ndarray:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        if dtype == array.dtype:
            return array
        narrowed = array.astype(dtype)
        # JAX itself narrows without an error: int64 2^40 becomes int32 0.
        if not np.array_equal(narrowed.astype(array.dtype), array, equal_nan=array.dtype.kind in "fc"):
            raise InvalidRequest(
                f"the field {jax.tree_util.keystr(path)} has values of {array.dtype} that {dtype} cannot hold; set "
                "jax_enable_x64, or leave the field on the host"
            )
        return narrowed

    return jax.tree_util.tree_map_with_path(fit, batch)
