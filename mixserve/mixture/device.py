"""A plan and data that lie on the accelerator -> rows gathered there."""

# JAX's own signatures are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Shaped

from mixserve.mixture.gather import Buffers
from mixserve.mixture.plan import Plan, pieces
from mixserve.sources import ArrayBacked, Source, is_array_backed
from mixserve_client.wire.description import Field

DeviceBuffers = Mapping[str, Shaped[Array, "rows ..."]]

# What is left of a device's memory is the trainer's, or that of batches under way.
_SHARE_OF_MEMORY = 0.25


def choose_placement(asked: str, sources: Sequence[Source], fields: tuple[Field, ...]) -> str:
    """`host` or `device` for `asked` in auto, host, device. Raises ValueError where `device` cannot be."""
    if asked not in ("auto", "host", "device"):
        raise ValueError(f"placement must be auto, host or device, got {asked!r}")
    if asked != "auto":
        if asked == "device":
            _check_device(sources)
        return asked
    device = jax.local_devices()[0]
    if device.platform == "cpu" or not all(map(is_array_backed, sources)):
        return "host"
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    size = sum(len(source) for source in sources) * sum(field.nbytes for field in on_device(fields))
    return "device" if size <= memory * _SHARE_OF_MEMORY else "host"


def _check_device(sources: Sequence[Source]) -> None:
    others = [repr(source) for source in sources if not is_array_backed(source)]
    if others:
        raise ValueError(f"placement device needs sources that are arrays, got {', '.join(others)}; use host")
    rows = sum(map(len, sources))
    if rows >= 1 << 31:
        raise ValueError(f"placement device holds up to 2^31 - 1 records, got {rows}; use host")


def on_device(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The fields that can lie on a device: JAX would narrow 64-bit numbers there, so these stay on the host."""
    return tuple(field for field in fields if jax.dtypes.canonicalize_dtype(field.dtype) == field.dtype)


def upload(sources: Sequence[Source], fields: tuple[Field, ...]) -> dict[str, Array]:
    """The sources' data on the default device, one array per field, the sources' rows one after another."""
    buffers: dict[str, Array] = {}
    for field in on_device(fields):
        parts = [
            jax.device_put(np.asarray(block[field.name]).astype(field.dtype, copy=False))
            for source in sources
            for block in cast(ArrayBacked, source).blocks()
        ]
        buffers[field.name] = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    return buffers


def source_starts(sources: Sequence[Source]) -> Int32[np.ndarray, " sources"]:
    """The row of each source's first record in the uploaded arrays."""
    return np.cumsum([0, *map(len, sources)])[:-1].astype(np.int32)


@jax.jit
def take_rows(buffers: DeviceBuffers, rows: Int32[Array, " size"]) -> dict[str, Array]:
    """The rows of every buffer, gathered on the device."""
    return {name: jnp.take(buffer, rows, axis=0, mode="clip") for name, buffer in buffers.items()}


def take_into(buffers: DeviceBuffers, starts: Int32[np.ndarray, " sources"], plan: Plan, out: Buffers) -> None:
    """Write the planned records into host arrays; all gathers and copies are under way before the first is awaited."""
    size = len(plan.source_ids)
    rows = starts[plan.source_ids] + plan.record_ids.astype(np.int32)
    under_way: list[tuple[int, dict[str, Array]]] = []
    for at, rung in pieces(size):
        piece = rows[at : at + rung]
        taken = take_rows(buffers, np.pad(piece, (0, rung - len(piece))))
        for array in taken.values():
            array.copy_to_host_async()
        under_way.append((at, taken))
    for at, taken in under_way:
        for name, array in taken.items():
            part = out[name][at : at + len(array)]
            part[...] = np.asarray(array)[: len(part)]
