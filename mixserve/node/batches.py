"""A mixture and positions -> batches as JAX arrays, eager or inside a compiled program."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, UInt32

from mixserve.failed_read import naming_positions
from mixserve.mixture import device
from mixserve.mixture.leaves import Plan
from mixserve.mixture.mixture import Mixture
from mixserve.mixture.plan import Planner, traceable
from mixserve.sources import ReferenceSource
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.fields import Field
from mixserve_client.schema.keys import IMPLEMENTATION, key_words
from mixserve_client.schema.tree import flatten

_ALIGNMENT = 64

Batch = dict[str, Array]
Ids = Int[Array, " size"] | Int[np.ndarray, " size"]


def eager_batch(
    mixture: Mixture, on_device: Mapping[str, Array], key: UInt32[np.ndarray, "2"], start: int, size: int
) -> Batch:
    """The rows at [start, start + size), by field name; `on_device` has the data of the fields stored on the device."""
    plan = mixture.planner.plan(key, start, size)
    batch = _device_batch(mixture, on_device, plan.source_ids, plan.record_ids)
    # Not jnp.asarray, which compiles a copy for every new shape. No copy is needed: only this call holds these arrays.
    with naming_positions([(start, size)]):
        return batch | jax.device_put(_host_batch(mixture, plan, _dtypes(mixture, batch)))


def traced_batch(
    mixture: Mixture,
    on_device: Mapping[str, Array],
    key: UInt32[Array, "2"],
    start: int | Int[Array, ""],
    size: int,
) -> Batch:
    """`eager_batch` inside the caller's own program. Raises InvalidRequest if the mixture must plan on the host."""
    planner = traceable(mixture.planner)
    drawn = planner.plan_traced(key, start, size)
    batch = _device_batch(mixture, on_device, drawn[0], drawn[1])
    dtypes = _dtypes(mixture, batch)
    drawn_leaves = [i for i in range(len(mixture.leaves)) if i not in mixture.never_drawn]
    traced = {i: leaf for i in drawn_leaves if isinstance(leaf := mixture.leaves[i], ReferenceSource)}
    if dtypes and len(traced) < len(drawn_leaves):
        batch |= _fetch_in_callback(mixture, planner, dtypes, drawn, size, frozenset(traced))
    for source_id, leaf in traced.items():
        # Every position is read from every such source, since shapes in a program are fixed; record 0 stands in.
        here = drawn[0] == source_id
        keys = jax.lax.bitcast_convert_type(drawn[-2:].T, jnp.uint32)
        records = flatten(leaf.take_traced(jnp.where(here, drawn[1], 0), keys))
        batch = {name: _choose(here, array, batch.get(name)) for name, array in records.items()}
    return batch


def jax_dtype(field: Field) -> np.dtype:
    """The dtype of the field's arrays in JAX: of 64 bits only if x64 is enabled."""
    return np.dtype(jax.dtypes.canonicalize_dtype(field.dtype))


def _fetch_in_callback(
    mixture: Mixture,
    planner: Planner,
    dtypes: Mapping[Field, np.dtype],
    drawn: Int[Array, "rows size"],
    size: int,
    without: frozenset[int],
) -> Batch:
    """The rows stored on the host, fetched by a callback while the program runs."""

    # NumPy only: the program waits for this callback, which would deadlock if JAX made it wait for the program.
    def on_host(drawn: np.ndarray) -> dict[str, np.ndarray]:
        drawn = np.asarray(drawn)  # of shape (..., rows, size) under vmap
        mapped, rows = drawn.shape[:-2], np.moveaxis(drawn, -2, 0)
        plan = planner.from_rows(rows.reshape(len(rows), -1))
        gathered = _host_batch(mixture, plan, dtypes, without)
        return {name: array.reshape(*mapped, size, *array.shape[1:]) for name, array in gathered.items()}

    shapes = {f.name: jax.ShapeDtypeStruct((size, *f.shape), dtype) for f, dtype in dtypes.items()}
    return jax.pure_callback(on_host, shapes, drawn, vmap_method="broadcast_all")


def _choose(here: Array, array: Array, other: Array | None) -> Array:
    if other is None:
        return array
    return jnp.where(here.reshape(-1, *[1] * (array.ndim - 1)), array, other)


def _device_batch(mixture: Mixture, on_device: Mapping[str, Array], source_ids: Ids, record_ids: Ids) -> Batch:
    if not on_device:
        return {}
    starts = mixture.device_starts
    if isinstance(source_ids, Tracer):
        starts = jnp.asarray(starts)
    return device.take_rows(on_device, starts[source_ids] + record_ids, mixture.fields)


def _dtypes(mixture: Mixture, batch: Batch) -> dict[Field, np.dtype]:
    """The fields that are not in `batch` yet, with their dtypes in JAX."""
    return {field: jax_dtype(field) for field in mixture.fields if field.name not in batch}


def _host_batch(
    mixture: Mixture, plan: Plan, dtypes: Mapping[Field, np.dtype], without: frozenset[int] = frozenset()
) -> dict[str, np.ndarray]:
    batch = {field.name: _aligned_rows(len(plan.source_ids), field) for field in dtypes}
    if batch:
        if without:
            for array in batch.values():
                array.fill(0)  # the gather leaves the slots of `without` as they are, in memory with old content
        mixture.host_gather.prefetch(plan)
        mixture.host_gather.into(plan, batch, without=without)
    return {field.name: _narrow(field.name, batch[field.name], dtype) for field, dtype in dtypes.items()}


def _aligned_rows(size: int, field: Field) -> np.ndarray:
    """An array to fill, aligned so that JAX's CPU backend uses it without a copy."""
    memory = np.empty(size * field.nbytes + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size * field.nbytes].view(field.dtype).reshape(size, *field.shape)


def _narrow(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = array.astype(dtype)
    same = (narrow == array) | ((narrow != narrow) & (array != array))  # a NaN is not equal to itself
    if not same.all():
        row = int(np.argwhere(~same)[0][0])
        raise ValueError(
            f"the field {name!r} holds {array.dtype} values that do not fit into {dtype}, first in row {row} of the "
            "batch; enable x64 in JAX, store a narrower dtype, or read it through a client, which keeps 64 bits"
        )
    return narrow


def check_traced_start(start: Tracer) -> None:
    """Raises InvalidRequest unless it is one integer."""
    if start.shape != () or not jnp.issubdtype(start.dtype, jnp.integer):
        raise InvalidRequest(f"start must be an integer, got shape {start.shape} and dtype {start.dtype}")


def traced_words(key: Any) -> UInt32[Array, "2"]:
    """The two words of a key, traced or not. Raises InvalidRequest."""
    if not isinstance(key, Tracer):
        return jnp.asarray(key_words(key))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(key)) != IMPLEMENTATION:
            raise InvalidRequest(f"key must be of the implementation {IMPLEMENTATION}, got {jax.random.key_impl(key)}")
        key = jax.random.key_data(key)
    if key.dtype != jnp.uint32 or key.shape != (2,):
        raise InvalidRequest(f"key must be one key of two uint32 words, got shape {key.shape} and dtype {key.dtype}")
    return key
