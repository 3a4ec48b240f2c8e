"""The node: a Flax NNX module whose batches are pure functions of (start, size, key)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Int, UInt32

from mixserve.mixture import Mixture, device
from mixserve.mixture.gather import Buffers
from mixserve.mixture.plan import Plan
from mixserve.module import DataSourceModule, DeviceData, Opaque
from mixserve.node.config import MixDataSourcesConfig
from mixserve.sources import ElementSpec, Source
from mixserve_client.errors import InvalidRequest
from mixserve_client.wire.description import Field
from mixserve_client.wire.key import IMPLEMENTATION, key_words
from mixserve_client.wire.request import check_positions
from mixserve_client.wire.tree import unflatten

_ALIGNMENT = 64

Ids = Int[Array, " size"] | Int[np.ndarray, " size"]


class MixDataSourcesNode(DataSourceModule):
    """Mixes records of several sources in proportion to weights.

    `len(node)` is the number of records of all sources together; the stream of positions is endless.
    """

    def __init__(
        self,
        config: MixDataSourcesConfig,
        sources: list[Any],
        *,
        rngs: nnx.Rngs | None = None,
        name: str | None = None,
    ):
        """Raises ValueError where the number of sources is not `config.num_sources`, and where two sources' element
        specs differ."""
        if len(sources) != config.num_sources:
            raise ValueError(f"num_sources is {config.num_sources}, got {len(sources)} sources")
        for source in sources:
            if not isinstance(source, Source):
                raise TypeError(f"a source needs __len__, element_spec() and take(record_ids), got {source!r}")
        assert config.weights is not None
        mixture = Mixture(sources, config.weights, config.source_names)
        self.config = nnx.static(config)
        self.name = nnx.static(name)
        self.rngs = rngs
        self.stochastic = config.stochastic
        self.stream_name = config.stream_name
        self.index = nnx.Variable(0)
        self.epoch = nnx.Variable(0)
        self._held = Opaque(mixture)
        self.placement = device.choose_placement(config.placement, mixture.sources, mixture.fields)
        self._device_data = DeviceData(
            device.upload(mixture.sources, mixture.fields) if self.placement == "device" else {}
        )

    @property
    def mixture(self) -> Mixture:
        """The immutable mixture that this node draws from."""
        return self._held.value

    @property
    def sources(self) -> list[Source]:
        """The child sources, in the order of their weights."""
        return list(self.mixture.sources)

    def __len__(self) -> int:
        return sum(self.mixture.lengths)

    def element_spec(self) -> ElementSpec:
        """Shape and dtype of every field of one element of `get_batch_at`: JAX's dtypes, as x64 is set."""
        return unflatten(
            {field.name: jax.ShapeDtypeStruct(field.shape, _jax_dtype(field)) for field in self.mixture.fields}
        )

    def get_batch_at(self, start: int | Array, size: int, key: Array | None = None) -> dict[str, Array]:
        """The rows at the positions [start, start + size): per field an array of shape (size, *field shape).

        Per position p: `pos_key = fold_in(key, p)`, split into three; the source is drawn with
        `categorical(src_key, log_weights)`, the record with `randint(idx_key, (), 0, len(source))`. Equal arguments
        give equal bytes, eager and compiled. `start` and `key` may be traced; a traced `start` has 32 bits.

        Raises ValueError if `key` is None or no threefry2x32 key, if `size` is not positive or `start` negative, and
        where a 64-bit field's value does not fit JAX's 32 bits.
        """
        if key is None:
            raise InvalidRequest("key is required: without a key a batch is not defined; pass jax.random.key(seed)")
        if isinstance(start, Tracer):
            check_positions(0, size)
            _check_traced_start(start)
        else:
            start, size = check_positions(start, size)
        if isinstance(start, Tracer) or isinstance(key, Tracer):
            return unflatten(self._traced_batch(start, size, _traced_words(key)))
        plan = self.mixture.planner.plan(key_words(key), start, size)
        batch = self._device_batch(plan.source_ids, plan.record_ids)
        # Not jnp.asarray, which compiles a copy for every new shape; nobody else holds these arrays.
        return unflatten(batch | jax.device_put(_host_batch(self.mixture, plan, self._dtypes(batch))))

    def read_into(self, start: int, key: UInt32[np.ndarray, "2"], buffers: Buffers) -> None:
        """Write the rows from position `start` on into host arrays of the stored dtypes, one per field.

        All have the leading length of the batch; 64-bit fields keep all their bits.
        """
        mixture = self.mixture
        size = len(next(iter(buffers.values())))
        plan = mixture.planner.plan(key, start, size)
        on_device: Mapping[str, Array] = self._device_data.get_value()
        if on_device:
            device.take_into(on_device, mixture.device_starts, plan, buffers)
        on_host = {name: buffer for name, buffer in buffers.items() if name not in on_device}
        if on_host:
            mixture.host_gather.into(plan, on_host)

    def warm_up(self, size_limit: int) -> None:
        """Compile what `read_into` needs for up to `size_limit` rows."""
        self.mixture.planner.warm_up()
        device.warm_up(self._device_data.get_value(), size_limit)

    def placed(self, placement: str | None) -> "MixDataSourcesNode":
        """A node of the same sources that gathers there (`auto`, `host` or `device`): itself where it does already."""
        if placement is None or placement in (self.placement, self.config.placement):
            return self
        config = replace(self.config, placement=placement)
        return MixDataSourcesNode(config, self.sources, rngs=self.rngs, name=self.name)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(sources={self.sources!r}, weights={list(self.mixture.weights)!r}, "
            f"length={len(self)})"
        )

    __str__ = __repr__

    def _traced_batch(self, start: int | Int[Array, ""], size: int, words: UInt32[Array, "2"]) -> dict[str, Array]:
        mixture = self.mixture
        drawn = mixture.planner.plan_traced(words, start, size)
        batch = self._device_batch(drawn[0], drawn[1])
        dtypes = self._dtypes(batch)
        if not dtypes:
            return batch

        # NumPy only: a program that waits for a callback must not be waited for by it.
        def on_host(drawn: np.ndarray) -> dict[str, np.ndarray]:
            drawn = np.asarray(drawn)  # of shape (..., rows, size) under vmap
            mapped, rows = drawn.shape[:-2], np.moveaxis(drawn, -2, 0)
            gathered = _host_batch(mixture, mixture.planner.from_rows(rows.reshape(len(rows), -1)), dtypes)
            return {name: array.reshape(*mapped, size, *array.shape[1:]) for name, array in gathered.items()}

        shapes = {f.name: jax.ShapeDtypeStruct((size, *f.shape), dtype) for f, dtype in dtypes.items()}
        return batch | jax.pure_callback(on_host, shapes, drawn, vmap_method="broadcast_all")

    def _device_batch(self, source_ids: Ids, record_ids: Ids) -> dict[str, Array]:
        on_device = self._device_data.get_value()
        if not on_device:
            return {}
        starts = self.mixture.device_starts
        if isinstance(source_ids, Tracer):
            starts = jnp.asarray(starts)
        return device.take_rows(on_device, starts[source_ids] + record_ids, self.mixture.fields)

    def _dtypes(self, batch: Mapping[str, Array]) -> dict[Field, np.dtype]:
        """The fields that are not in `batch` yet, and the JAX dtypes that they will have."""
        return {field: _jax_dtype(field) for field in self.mixture.fields if field.name not in batch}


def _host_batch(mixture: Mixture, plan: Plan, dtypes: Mapping[Field, np.dtype]) -> dict[str, np.ndarray]:
    batch = {field.name: _aligned_rows(len(plan.source_ids), field) for field in dtypes}
    if batch:
        mixture.host_gather.into(plan, batch)
    return {field.name: _narrowed(field.name, batch[field.name], dtype) for field, dtype in dtypes.items()}


def _aligned_rows(size: int, field: Field) -> np.ndarray:
    """An array to fill, at an address from which JAX's CPU backend takes arrays without a copy."""
    memory = np.empty(size * field.nbytes + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size * field.nbytes].view(field.dtype).reshape(size, *field.shape)


def _jax_dtype(field: Field) -> np.dtype:
    return np.dtype(jax.dtypes.canonicalize_dtype(field.dtype))


def _narrowed(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = array.astype(dtype)
    same = (narrow == array) | ((narrow != narrow) & (array != array))  # NaN stays NaN
    if not same.all():
        row = int(np.argwhere(~same)[0][0])
        raise ValueError(
            f"the field {name!r} holds {array.dtype} values that {dtype} cannot, first in row {row} of the batch; "
            "enable x64 in JAX, store a narrower dtype, or read it through a client, which keeps 64 bits"
        )
    return narrow


def _check_traced_start(start: Tracer) -> None:
    if start.shape != () or not jnp.issubdtype(start.dtype, jnp.integer):
        raise InvalidRequest(f"start must be an integer, got shape {start.shape} and dtype {start.dtype}")


def _traced_words(key: Any) -> UInt32[Array, "2"]:
    if not isinstance(key, Tracer):
        return jnp.asarray(key_words(key))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(key)) != IMPLEMENTATION:
            raise InvalidRequest(f"key must be of the implementation {IMPLEMENTATION}, got {jax.random.key_impl(key)}")
        key = jax.random.key_data(key)
    if key.dtype != jnp.uint32 or key.shape != (2,):
        raise InvalidRequest(f"key must be one key of two uint32 words, got shape {key.shape} and dtype {key.dtype}")
    return key
