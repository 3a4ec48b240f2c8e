"""Batches in the dtypes that JAX has as x64 is set: without it, values of 64 bits become those of 32 if they fit."""
# pyright: standard

from typing import Any

import jax
import numpy as np

from mixserve_client.errors import InvalidRequest


def fitting(batch: Any) -> Any:
    """The batch in the dtypes that JAX has as x64 is set. Raises InvalidRequest where a value does not fit."""

    def fit(path: Any, array: np.ndarray) -> np.ndarray:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        if dtype == array.dtype:
            return array
        narrowed = array.astype(dtype)
        if not np.array_equal(narrowed.astype(array.dtype), array, equal_nan=array.dtype.kind in "fc"):
            raise InvalidRequest(
                f"the field {jax.tree_util.keystr(path)} has values of {array.dtype} that {dtype} cannot hold; set "
                "jax_enable_x64, or leave the field on the host"
            )
        return narrowed

    return jax.tree_util.tree_map_with_path(fit, batch)
