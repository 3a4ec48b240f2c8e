"""A source of the reference's own protocol -> one that a mixture reads in batches, every record with its own key."""

import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, UInt32

from mixserve.sources.source import ElementSpec, RecordIds, Records, content_bytes
from mixserve_client.wire.key import IMPLEMENTATION
from mixserve_client.wire.tree import flatten, unflatten

logger = logging.getLogger(__name__)

# Records are read in groups of these sizes, so that few programs serve all batches. No larger ones: a source that
# shuffles makes a permutation of its whole length for every record of a group at once.
_SMALL_GROUP, _GROUP = 8, 64
_LONGEST_INT32 = 2**31 - 1


@runtime_checkable
class FollowsReference(Protocol):
    """Random access in the words of the reference, as its own sources have it."""

    def __len__(self) -> int: ...

    def element_spec(self) -> ElementSpec: ...

    def get_batch_at(self, start: Any, size: int, key: Any = None) -> Any: ...


class ReferenceSource:
    """The records `module.get_batch_at(record, 1, fetch_key)`.

    A module that JAX can trace is called for many records at once, from a compiled program; one that refuses tracers,
    or is longer than 2^31 - 1, record by record.
    """

    def __init__(self, module: FollowsReference):
        self.module = module
        label = getattr(module, "name", None)
        self.name = None if label == type(module).__name__ else label  # the reference's default is the class's name
        self._record_spec = self._traced_spec()
        self._programs: dict[int, jax.stages.Compiled] = {}

    @property
    def traces(self) -> bool:
        """Whether the module can be called inside compiled programs."""
        return self._record_spec is not None

    def __len__(self) -> int:
        return len(self.module)

    def element_spec(self) -> ElementSpec:
        """Shape and dtype of what `get_batch_at` really gives: JAX narrows what a module may declare as 64 bits."""
        return self._spec

    def take_keyed(self, record_ids: RecordIds, keys: UInt32[np.ndarray, "size 2"]) -> Records:
        if self.traces:
            parts = [
                self._group(record_ids[at : at + _GROUP], keys[at : at + _GROUP]) for at in range(0, len(keys), _GROUP)
            ]
        else:
            with jax.ensure_compile_time_eval():
                parts = [
                    jax.tree.map(np.asarray, self.module.get_batch_at(record_id, 1, jax.random.wrap_key_data(words)))
                    for record_id, words in zip(record_ids.tolist(), keys, strict=True)
                ]
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def take_traced(self, record_ids: Int[Array, " size"], keys: UInt32[Array, "size 2"]) -> Records:
        """`take_keyed` inside the caller's own program. Raises ValueError where the module refuses tracers."""
        if not self.traces:
            raise ValueError(
                f"{self!r} cannot be read inside a compiled program: its get_batch_at takes no traced values; "
                "call the mixture's get_batch_at outside of it"
            )
        return _read(self.module, record_ids, keys)

    def content_digest(self) -> bytes:
        """The module's own, where it has one."""
        return content_bytes(self.module)

    def __repr__(self) -> str:
        return f"{self.module!r}"

    def _traced_spec(self) -> ElementSpec | None:
        if len(self.module) > _LONGEST_INT32:
            return None
        ids, keys = jax.ShapeDtypeStruct((1,), np.int32), jax.ShapeDtypeStruct((1, 2), np.uint32)
        try:
            batch = jax.eval_shape(functools.partial(_read, self.module), ids, keys)
        except Exception as error:  # whatever the module's code raises when it meets a tracer
            logger.info("%r is read record by record, since it cannot be traced: %s", self.module, error)
            return None
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)

    def _group(self, record_ids: RecordIds, keys: UInt32[np.ndarray, "some 2"]) -> Records:
        size = _SMALL_GROUP if len(keys) <= _SMALL_GROUP else _GROUP
        padding = size - len(keys)
        if size not in self._programs:
            self._programs[size] = self._compiled(size)
        batch = self._programs[size](
            self._state[1], np.pad(record_ids, (0, padding)).astype(np.int32), np.pad(keys, ((0, padding), (0, 0)))
        )
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(keys)], batch)

    @functools.cached_property
    def _spec(self) -> ElementSpec:
        declared = self.module.element_spec()
        if self._record_spec is not None:
            return self._record_spec
        if len(self.module) == 0:
            return declared
        first = flatten(self.take_keyed(np.zeros(1, np.int64), np.zeros((1, 2), np.uint32)))
        return unflatten({name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in first.items()})

    @functools.cached_property
    def _state(self) -> tuple[Any, Any]:
        """The module taken apart, so that its data are inputs of programs and not constants in them."""
        if not isinstance(self.module, nnx.Module):
            return None, ()
        graph, state = nnx.split(self.module)
        return graph, jax.device_put(state)

    def _compiled(self, size: int) -> jax.stages.Compiled:
        def read(state: Any, record_ids: Int[Array, " size"], keys: UInt32[Array, "size 2"]) -> Records:
            graph = self._state[0]
            return _read(self.module if graph is None else nnx.merge(graph, state), record_ids, keys)

        def compiled() -> jax.stages.Compiled:
            ids, keys = np.zeros(size, np.int32), np.zeros((size, 2), np.uint32)
            return jax.jit(read).lower(self._state[1], ids, keys).compile()

        # In a thread of its own, which no trace of the caller's reaches.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(compiled).result()


def _read(module: FollowsReference, record_ids: Int[Array, " size"], keys: UInt32[Array, "size 2"]) -> Records:
    def one(record_id: Int[Array, ""], words: UInt32[Array, "2"]) -> Records:
        batch = module.get_batch_at(record_id, 1, jax.random.wrap_key_data(words, impl=IMPLEMENTATION))
        return jax.tree.map(lambda leaf: leaf[0], batch)

    return jax.vmap(one)(record_ids, keys)
