"""A plan and data on the accelerator -> rows gathered there."""

# JAX's own signatures have types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Shaped

from mixserve.forked import check_jax
from mixserve.mixture.gather import Buffers
from mixserve.mixture.mixture import Mixture
from mixserve.mixture.plan import Plan, buckets
from mixserve.sources import AnySource, ArrayBacked, is_array_backed
from mixserve_client.schema.fields import Field

DeviceBuffers = Mapping[str, Shaped[Array, "rows ..."]]

# The rest of a device's memory is for the trainer and for batches in flight.
_SHARE_OF_MEMORY = 0.25
_WIDE = ("int64", "uint64", "float64", "complex128")


def choose_placement(asked: str, mixture: Mixture) -> str:
    """`host` or `device` for `asked` in auto, host, device. Raises ValueError if `device` is not possible."""
    obstacle = _obstacle(mixture)
    if asked == "device" and obstacle is not None:
        raise ValueError(f"placement device is not possible: {obstacle}; use host")
    if asked != "auto":
        return asked
    device = jax.local_devices()[0]
    if device.platform == "cpu" or obstacle is not None:
        return "host"
    row_bytes = sum(field.nbytes for field in on_device(mixture.fields))
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    return "device" if 0 < len(mixture) * row_bytes <= memory * _SHARE_OF_MEMORY else "host"


def _obstacle(mixture: Mixture) -> str | None:
    if not mixture.is_numeric:
        return "its records are not arrays of numbers"
    others = [repr(leaf) for leaf in mixture.leaves if not is_array_backed(leaf)]
    if others:
        return f"all its sources must be array-backed, got {', '.join(others)}"
    rows = sum(map(len, mixture.leaves))
    return f"it holds up to 2^31 - 1 records, got {rows}" if rows >= 1 << 31 else None


def on_device(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The fields that are stored on the device: not those of 64 bits, which JAX would narrow; they stay on the host."""
    return tuple(field for field in fields if field.dtype.name not in _WIDE)


def upload(sources: Sequence[AnySource], fields: tuple[Field, ...]) -> dict[str, Array]:
    """The sources' data on the default device: per field one array, with the rows of all sources in order.

    Floats are stored as unsigned integers of their size: some backends rewrite the bits of NaNs when they copy floats.
    """
    buffers: dict[str, Array] = {}
    for field in on_device(fields):
        parts = [
            jax.device_put(np.asarray(block[field.name]).astype(field.dtype, copy=False).view(_carrier(field.dtype)))
            for source in sources
            for block in cast(ArrayBacked, source).blocks()
        ]
        buffers[field.name] = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    return buffers


def _carrier(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"uint{8 * dtype.itemsize}") if jnp.issubdtype(dtype, jnp.floating) else dtype


def take_rows(buffers: DeviceBuffers, rows: Int32[Array, " size"], fields: tuple[Field, ...]) -> dict[str, Array]:
    """The rows of every buffer, gathered on the device, in the dtypes of the fields."""
    check_jax()
    taken = _take(buffers, jax.device_put(rows))
    dtypes = {field.name: field.dtype for field in fields}
    return {
        name: array if array.dtype == dtypes[name] else jax.lax.bitcast_convert_type(array, dtypes[name])
        for name, array in taken.items()
    }


def begin_take(
    buffers: DeviceBuffers, starts: Int32[np.ndarray, " sources"], plan: Plan, sizes: tuple[int, ...]
) -> Callable[[Buffers], None]:
    """Begin to gather the planned records, in buckets of `sizes`, and to copy them to the host.

    Returns a function that waits for them and writes them into host arrays.
    """
    check_jax()
    rows = starts[plan.source_ids] + plan.record_ids.astype(np.int32)
    under_way: list[tuple[int, dict[str, Array]]] = []
    for at, size in buckets(len(rows), sizes):
        part = rows[at : at + size]
        # Padded to the bucket's size, so that no new size compiles a program.
        taken = _take(buffers, jax.device_put(np.pad(part, (0, size - len(part)))))
        for array in taken.values():  # all copies begin before `write` waits for the first
            array.copy_to_host_async()
        under_way.append((at, taken))

    def write(out: Buffers) -> None:
        for at, taken in under_way:
            for name, array in taken.items():
                part = out[name][at : at + len(array)]
                part[...] = np.asarray(array)[: len(part)].view(part.dtype)

    return write


def warm_up(buffers: DeviceBuffers, size_limit: int, sizes: tuple[int, ...]) -> None:
    """Compile the gather programs that requests of up to `size_limit` rows need."""
    asked = (1, *sizes, size_limit)
    for bucket in {bucket for size in asked if size <= size_limit for _, bucket in buckets(size, sizes)}:
        jax.block_until_ready(_take(buffers, np.zeros(bucket, np.int32)))


@jax.jit
def _take(buffers: DeviceBuffers, rows: Int32[Array, " size"]) -> dict[str, Array]:
    # Row numbers come from a plan and are in range; JAX's default mode would look for others, and fill their rows.
    return {name: buffer.at[rows].get(mode="promise_in_bounds") for name, buffer in buffers.items()}
