"""A source of the reference's protocol -> a source that a mixture reads in batches, each record with its own key."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, UInt32

from mixserve.forked import check_jax
from mixserve.sources.digest import digest_blocks
from mixserve.sources.source import ElementSpec, RecordIds, Records, content_bytes
from mixserve_client.schema.keys import IMPLEMENTATION
from mixserve_client.schema.tree import flatten, unflatten

logger = logging.getLogger(__name__)

# Records are read in groups of these sizes, so that two programs serve all batches. No larger ones: a source that
# shuffles makes a permutation of its whole length for every record of a group, all at the same time.
_SMALL_GROUP, _GROUP = 8, 64
_LONGEST_INT32 = 2**31 - 1

T = TypeVar("T")


@runtime_checkable
class FollowsReference(Protocol):
    """The random access of the reference's own sources."""

    def __len__(self) -> int: ...

    def element_spec(self) -> ElementSpec: ...

    def get_batch_at(self, start: Any, size: int, key: Any = None) -> Any: ...


class ReferenceSource:
    """The records `module.get_batch_at(record, 1, fetch_key)`.

    A module that JAX can trace is called for many records at a time, from a compiled program. A module that refuses
    tracers, or has more than 2^31 - 1 records, is called record by record. Later changes of a Flax NNX module's data
    have no effect.
    """

    def __init__(self, module: FollowsReference):
        self.module = module
        label = getattr(module, "name", None)
        self.name = None if label == type(module).__name__ else label  # the class's name is the reference's default
        self.content_id: str | None = getattr(module, "content_id", None)
        self._programs: dict[int, jax.stages.Compiled] = {}
        self._compiling = threading.Lock()
        # Split, so that the data are inputs of programs: as constants they would be compiled into each one.
        is_flax = isinstance(module, nnx.Module)
        self._graph, self._state = nnx.split(module) if is_flax else (None, ())
        self._record_spec = _in_a_new_thread(self._traced_spec)
        if self.traces:
            self._state = jax.device_put(self._state)

    @property
    def traces(self) -> bool:
        """Whether compiled programs can call the module."""
        return self._record_spec is not None

    def __len__(self) -> int:
        return len(self.module)

    def element_spec(self) -> ElementSpec:
        """Shape and dtype of what `get_batch_at` really returns: JAX may narrow a dtype that the module declares."""
        return self._spec

    def take_keyed(self, record_ids: RecordIds, keys: UInt32[np.ndarray, "size 2"]) -> Records:
        if self.traces:
            starts = range(0, len(keys), _GROUP)
            parts = [self._read_group(record_ids[at : at + _GROUP], keys[at : at + _GROUP]) for at in starts]
        else:
            parts = [
                self._read_one(record_id, words) for record_id, words in zip(record_ids.tolist(), keys, strict=True)
            ]
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def take_traced(self, record_ids: Int[Array, " size"], keys: UInt32[Array, "size 2"]) -> Records:
        """`take_keyed` inside the caller's own program. Raises ValueError if the module refuses tracers."""
        if not self.traces:
            raise ValueError(
                f"{self!r} cannot be read inside a compiled program: its get_batch_at refuses traced values; "
                "call the mixture's get_batch_at outside of it"
            )
        records = self._read(self._state, record_ids, keys)
        return jax.tree.map(lambda leaf, spec: leaf.astype(spec.dtype), records, self._record_spec)

    def warm_up(self) -> None:
        """Compile the programs that `take_keyed` needs."""
        if self.traces:
            for size in (_SMALL_GROUP, _GROUP):
                self._program(size)

    def content_digest(self) -> bytes:
        """The module's own digest, else that of the arrays in a Flax NNX module, else empty."""
        own = content_bytes(self.module)
        arrays = [leaf for leaf in jax.tree.leaves(self._state) if getattr(leaf, "ndim", 0) and not _is_key(leaf)]
        return own or (
            digest_blocks([{str(i): np.asarray(array) for i, array in enumerate(arrays)}]) if arrays else b""
        )

    def __reduce__(self) -> Any:
        return ReferenceSource, (self.module,)

    def __repr__(self) -> str:
        return f"{type(self.module).__name__}(name={self.name!r}, length={len(self)})"

    @cached_property
    def _spec(self) -> ElementSpec:
        declared = self.module.element_spec()
        if self._record_spec is not None:
            return self._record_spec
        if len(self.module) == 0:
            return declared
        first = flatten(self._read_one(0, np.zeros(2, np.uint32)))
        return unflatten({name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in first.items()})

    def _traced_spec(self) -> ElementSpec | None:
        if len(self.module) > _LONGEST_INT32:
            return None
        ids, keys = jax.ShapeDtypeStruct((1,), np.int32), jax.ShapeDtypeStruct((1, 2), np.uint32)
        try:
            batch = jax.eval_shape(lambda ids, keys: self._read(self._state, ids, keys), ids, keys)
        except Exception as error:  # whatever the module's code raises when it gets a tracer
            logger.info("reading %r record by record, since JAX cannot trace it: %s", self, error)
            return None
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)

    def _read(self, state: Any, record_ids: Int[Array, " size"], keys: UInt32[Array, "size 2"]) -> Records:
        module: Any = self.module if self._graph is None else nnx.merge(self._graph, state)

        def one(record_id: Int[Array, ""], words: UInt32[Array, "2"]) -> Records:
            batch = module.get_batch_at(record_id, 1, jax.random.wrap_key_data(words, impl=IMPLEMENTATION))
            return jax.tree.map(lambda leaf: leaf[0], batch)

        return jax.vmap(one)(record_ids, keys)

    def _read_one(self, record_id: int, words: UInt32[np.ndarray, "2"]) -> Records:
        """A batch of one record, read on the host."""
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            key = jax.random.wrap_key_data(jnp.asarray(words), impl=IMPLEMENTATION)
            return jax.tree.map(np.asarray, self.module.get_batch_at(record_id, 1, key))

    def _read_group(self, record_ids: RecordIds, keys: UInt32[np.ndarray, "some 2"]) -> Records:
        """Up to 64 records, read by one of the two programs."""
        check_jax()
        size = _SMALL_GROUP if len(keys) <= _SMALL_GROUP else _GROUP
        padding = size - len(keys)
        ids, words = np.pad(record_ids, (0, padding)).astype(np.int32), np.pad(keys, ((0, padding), (0, 0)))
        with jax.transfer_guard("allow"):  # the caller's guard is not meant for a few words
            batch = self._program(size)(self._state, ids, words)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(keys)], batch)

    def _program(self, size: int) -> jax.stages.Compiled:
        def make() -> jax.stages.Compiled:
            ids, keys = np.zeros(size, np.int32), np.zeros((size, 2), np.uint32)
            return jax.jit(self._read).lower(self._state, ids, keys).compile()

        with self._compiling:
            if size not in self._programs:
                self._programs[size] = _in_a_new_thread(make)
            return self._programs[size]


def _in_a_new_thread(task: Callable[[], T]) -> T:
    """The result of `task` in a new thread, which the caller's trace and JAX settings do not reach."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(task).result()


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
