"""The bases that the reference documents: configurations and modules of structural processors and of data sources."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import nnx


@dataclass(frozen=True)
class StructuralConfig:
    """What every structural module can be configured with.

    `batch_stats_fn` computes statistics of a batch, `precomputed_stats` gives them; at most one of the two.
    """

    cacheable: bool = False
    batch_stats_fn: Callable[..., Any] | nnx.Module | None = None
    precomputed_stats: dict[str, Any] | None = None
    stochastic: bool = False
    stream_name: str | None = None

    def __post_init__(self) -> None:
        if self.batch_stats_fn is not None and self.precomputed_stats is not None:
            raise ValueError("batch_stats_fn and precomputed_stats exclude each other; give one of them")

    def __hash__(self) -> int:
        # Statistics are dicts, which have no hash; equal configurations have equal hashes all the same.
        return hash((type(self), self.cacheable, self.stochastic, self.stream_name))


class DataSourceModule(nnx.Module):
    """A Flax NNX module that gives records by position."""

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def element_spec(self) -> Any:
        """A pytree of `jax.ShapeDtypeStruct` that describes one record."""
        raise NotImplementedError(f"{type(self).__name__} must define element_spec")


class Opaque:
    """Holds what NNX must neither see, copy nor trace: host data, iterators, caches.

    NNX would turn NumPy and memory-mapped attributes into JAX arrays at the first `nnx.jit`, narrow 64-bit integers,
    and copy the data with the module. It hashes and compares this holder by identity, and shares it between clones.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __copy__(self) -> "Opaque":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Opaque":
        return self


class DeviceData(nnx.Variable):
    """Data on the device: an input of compiled programs, to be left out of a module's state with `nnx.Not`."""
