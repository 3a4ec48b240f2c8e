"""The base classes that the reference documents: the configuration and the surface of every data source module."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from mixserve.error_boundary import user_code
from mixserve.module.holders import DeviceData, ModuleOwned, OpaqueHolder
from mixserve.module.state import State, below, check_same_shape, plain, plain_statistics


@dataclass(frozen=True, eq=False)
class StructuralConfig:
    """The configuration that all structural modules share.

    `cacheable` caches the last few results. Of `batch_stats_fn`, which computes statistics, and `precomputed_stats`, at
    most one is allowed. Configurations are equal if all fields are equal, arrays by shape, dtype and values.
    """

    cacheable: bool = False
    batch_stats_fn: Callable[..., Any] | nnx.Module | None = None
    precomputed_stats: dict[str, Any] | None = None
    stochastic: bool = False
    stream_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("cacheable", "stochastic"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name} must be True or False, got {getattr(self, name)!r}; pass fields by their names"
                )
        if not isinstance(self.stream_name, str | None):
            raise ValueError(f"stream_name must be a string, got {self.stream_name!r}")
        if self.batch_stats_fn is not None and not callable(self.batch_stats_fn):
            raise ValueError(f"batch_stats_fn must be callable, got {self.batch_stats_fn!r}")
        if self.precomputed_stats is not None and not isinstance(self.precomputed_stats, dict):
            raise ValueError(f"precomputed_stats must be a dict, got {self.precomputed_stats!r}")
        if self.batch_stats_fn is not None and self.precomputed_stats is not None:
            raise ValueError("batch_stats_fn and precomputed_stats exclude each other; pass one of them")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    def __hash__(self) -> int:
        # Without statistics, since dicts have no hash. Equal configurations still have equal hashes.
        hashable = [
            getattr(self, f.name) for f in fields(self) if f.name not in ("batch_stats_fn", "precomputed_stats")
        ]
        return hash((type(self), *hashable))


class Statistics(NamedTuple):
    """The statistics last set or computed, and whether `reset_statistics` was called since."""

    values: dict[str, Any] | None = None
    is_reset: bool = False


class DataSourceModule(nnx.Module):
    """A Flax NNX module that returns records by position, with the surface of the reference's modules."""

    def __init__(self, config: StructuralConfig, *, rngs: nnx.Rngs | None = None, name: str | None = None):
        self.config = nnx.static(config)
        self.name = nnx.static(name)
        self.rngs = rngs
        self.stochastic = config.stochastic
        self.stream_name = config.stream_name
        self._applied_count = nnx.Variable(_zero())
        self._skipped_count = nnx.Variable(_zero())
        self._statistics = ModuleOwned(self, Statistics())
        self._cache = OpaqueHolder(None)  # a subclass that caches results holds an object with clear() here

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def element_spec(self) -> Any:
        """A pytree of `jax.ShapeDtypeStruct` that describes one record."""
        raise NotImplementedError(f"{type(self).__name__} must define element_spec")

    def process(self, input: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A002 - the reference's name
        """The result for `input`, counted in `get_operation_stats`."""
        raise NotImplementedError(f"{type(self).__name__} must define process")

    def get_operation_stats(self) -> dict[str, int]:
        """How many calls of `process` returned (`applied_count`) and how many raised (`skipped_count`), as ints."""
        return {"applied_count": int(self._applied_count[...]), "skipped_count": int(self._skipped_count[...])}

    def reset_operation_stats(self) -> None:
        """Set both counts to zero."""
        self._applied_count.set_value(_zero())
        self._skipped_count.set_value(_zero())

    def compute_statistics(self, data: Any) -> dict[str, Any] | None:
        """Return `batch_stats_fn(data)` and store it for `get_statistics`; None if no function is configured.

        Raises TypeError if the function returns something other than a dict.
        """
        if self.config.batch_stats_fn is None:
            return None
        with user_code("batch_stats_fn"):
            statistics: Any = self.config.batch_stats_fn(data)
        if not isinstance(statistics, dict):
            raise TypeError(f"batch_stats_fn must return a dict, got {type(statistics).__name__}")
        self._set_statistics(Statistics(statistics))
        return statistics

    def get_statistics(self) -> dict[str, Any] | None:
        """The precomputed statistics if configured, else the last that were computed or set, else None.

        After `reset_statistics` it returns None until statistics are computed or set.
        """
        statistics: Statistics = self._own_statistics().value
        if statistics.is_reset:
            return None
        return statistics.values if self.config.precomputed_stats is None else self.config.precomputed_stats

    def set_statistics(self, stats: dict[str, Any]) -> None:
        """Store `stats` in place of computed statistics, and end the effect of `reset_statistics`.

        `get_statistics` still prefers precomputed statistics. Raises TypeError if `stats` is not a dict.
        """
        if not isinstance(stats, dict):
            raise TypeError(f"stats must be a dict, got {type(stats).__name__}")
        self._set_statistics(Statistics(stats))

    def reset_statistics(self) -> None:
        """Clear the statistics: `get_statistics` returns None, even with precomputed ones, until some are set."""
        self._set_statistics(Statistics(is_reset=True))

    def reset_cache(self) -> None:
        """Evict all cached batches, which clones share; does nothing without `cacheable`."""
        if self._cache.value is not None:
            self._cache.value.clear()

    def copy(
        self, *, config: StructuralConfig | None = None, rngs: nnx.Rngs | None = None, name: str | None = None
    ) -> Self:
        """A new module in its initial state, made from this one's arguments, or from those given here."""
        return type(self)(**self._arguments(config=config, rngs=rngs, name=name))

    def clone(self) -> Self:
        """A new module in the same state; from then on each has its own state. Data are shared."""
        cloned = nnx.clone(self)
        cloned._take_own()
        return cloned

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        copied._take_own()
        return copied

    def get_state(self) -> State:
        """The module's state as dicts of NumPy arrays, numbers and strings, without its data."""
        pure: Any = nnx.to_pure_dict(nnx.state(self, nnx.Not(DeviceData)))
        statistics: Statistics = self._own_statistics().value
        return {
            **plain(pure, ""),
            "statistics": {
                "known": statistics.values is not None,
                "reset": statistics.is_reset,
                "values": plain_statistics(statistics.values or {}, "statistics.values"),
            },
        }

    def set_state(self, state: State) -> None:
        """Restore a state that `get_state` returned.

        Raises TypeError if `state` is not a dict; ValueError, which names the path, if an entry is missing, unknown, or
        of another type, shape or dtype. Then nothing has changed.
        """
        if not isinstance(state, dict):
            raise TypeError(f"state must be a dict, as get_state returns it, got {type(state).__name__}")
        for change in self._changes(state, ""):
            change()

    def requires_rng_streams(self) -> list[str] | None:
        """The names of the RNG streams that the module needs; None, unless a subclass needs some."""
        return None

    def ensure_rng_streams(self, stream_names: list[str]) -> None:
        """Raises ValueError if a stream of `requires_rng_streams` is not among `stream_names`."""
        missing = [name for name in self.requires_rng_streams() or [] if name not in stream_names]
        if missing:
            raise ValueError(f"the RNG streams {missing} are required, got only {sorted(stream_names)}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()" if self.name is None else f"{type(self).__name__}(name={self.name!r})"

    __str__ = __repr__

    def _arguments(self, *, config: StructuralConfig | None, rngs: nnx.Rngs | None, name: str | None) -> dict[str, Any]:
        """The arguments of a copy; a subclass adds its own."""
        return {
            "config": self.config if config is None else config,
            "rngs": self.rngs if rngs is None else rngs,
            "name": self.name if name is None else name,
        }

    def _changes(self, state: State, path: str) -> list[Callable[[], None]]:
        """Check `state`, which is at `path` in the whole state; returns functions that restore it and cannot fail.

        A subclass whose `get_state` has more entries removes them from `state` first. Raises ValueError.
        """
        own: Any = nnx.state(self, nnx.Not(DeviceData))
        expected = {**plain(nnx.to_pure_dict(own), ""), "statistics": {"known": False, "reset": False, "values": {}}}
        given, values = dict(state), {}
        if isinstance(given.get("statistics"), dict) and "values" in given["statistics"]:
            values = given["statistics"]["values"]
            if not isinstance(values, dict):
                raise ValueError(f"{below(path, 'statistics.values')} must be a dict, got {type(values).__name__}")
            given["statistics"] = given["statistics"] | {"values": {}}  # compared without: they may have any shape
        check_same_shape(expected, given, path)
        said = given.pop("statistics")
        if values and not said["known"]:
            raise ValueError(f"{below(path, 'statistics.values')} must be empty if known is False, got {values!r:.100}")
        try:
            kept = plain_statistics(values, below(path, "statistics.values")) if said["known"] else None
        except TypeError as error:
            raise ValueError(str(error)) from error
        for name in ("_applied_count", "_skipped_count"):
            if given[name] < 0:
                raise ValueError(f"{below(path, name)} must be at least 0, got {given[name]}")
        restored = _with_values(own, given, path)
        return [
            lambda: nnx.update(self, restored),
            lambda: self._set_statistics(Statistics(kept, bool(said["reset"]))),
        ]

    def _modules(self) -> dict[str, "DataSourceModule"]:
        """The children that are modules and have a state, by name. A subclass that has some overrides it."""
        return {}

    def _take_own(self) -> None:
        """Make the holders that a clone must not share with its original. A subclass adds its own."""
        self._own_statistics()

    def _own_holder(self, attribute: str, renew: Callable[[Any], Any]) -> ModuleOwned:
        """This module's own holder in `attribute`; a clone replaces its original's by one that holds `renew(value)`."""
        held: ModuleOwned = getattr(self, attribute)
        # Not inside a program: NNX compares holders by identity, so a new one would compile the program again.
        if not held.belongs_to(self) and not self._is_in_program():
            held = ModuleOwned(self, renew(held.value))
            setattr(self, attribute, held)
        return held

    def _own_statistics(self) -> ModuleOwned:
        return self._own_holder("_statistics", lambda statistics: statistics)

    def _set_statistics(self, statistics: Statistics) -> None:
        if self._is_in_program() or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(statistics.values)):
            raise ValueError("statistics cannot change inside a compiled program; compute or set them outside of it")
        self._own_statistics().value = statistics

    def _is_in_program(self) -> bool:
        """Whether this is a traced copy of a module, inside a compiled program."""
        return isinstance(self._applied_count.get_value(), Tracer)

    def counted(self, call: Callable[[], Any]) -> Any:
        """Return `call()`, counted as applied if it returns, as skipped if it raises."""
        try:
            result = call()
        except BaseException:
            self._add_one(self._skipped_count)
            raise
        self._add_one(self._applied_count)
        return result

    @staticmethod
    def _add_one(count: nnx.Variable) -> None:
        with jax.transfer_guard("allow"):  # the caller's guard is not meant for the number one
            count[...] += 1


def kept_statistics(module: DataSourceModule) -> list[dict[str, Any]]:
    """The last computed or set statistics: the module's own, an empty dict if it has none, and its children's."""
    own: Statistics = module._own_statistics().value
    return [own.values or {}, *chain.from_iterable(map(kept_statistics, module._modules().values()))]


def _zero() -> jax.Array:
    return jax.device_put(np.zeros((), np.int32))


def _with_values(state: Any, values: Any, path: str) -> Any:
    """`state` with the leaves of `values`; numbers, arrays and keys keep the types that they have in `state`.

    Raises ValueError, which names the path, if a number does not fit into the dtype of its array.
    """

    def restore(old: Any, new: Any, path: str) -> Any:
        if not isinstance(old, jax.Array):
            return np.asarray(new).item()
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jnp.asarray(new), impl=jax.random.key_impl(old))
        # A compiled program turns a Python number into a weakly typed scalar; it becomes a Python number again.
        if old.weak_type and old.shape == ():
            return np.asarray(new).item()
        if jnp.issubdtype(old.dtype, jnp.integer) and not _fits(new, old.dtype):
            raise ValueError(f"{path} must fit into {old.dtype}, got {new!r:.100}")
        return jnp.asarray(new, old.dtype)

    def walk(old: Any, new: Any, path: str) -> Any:
        if isinstance(old, dict):
            return {key: walk(old[key], new[key], below(path, key)) for key in old}
        return restore(old, new, path)

    nnx.replace_by_pure_dict(state, walk(nnx.to_pure_dict(state), values, path))
    return state


def _fits(value: Any, dtype: np.dtype) -> bool:
    limits = np.iinfo(dtype)
    return bool(np.all((np.asarray(value) >= limits.min) & (np.asarray(value) <= limits.max)))


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    if hasattr(left, "dtype") or hasattr(right, "dtype"):
        a, b = np.asarray(left), np.asarray(right)
        return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))
    return left is right or left == right
