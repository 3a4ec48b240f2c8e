"""The configuration of a mixing node."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import KW_ONLY, dataclass
from numbers import Integral

import jax
import numpy as np

from mixserve.mixture.mixture import normalised
from mixserve.module import StructuralConfig

PLACEMENTS = ("auto", "host", "device")


@dataclass(frozen=True, eq=False)
class MixDataSourcesConfig(StructuralConfig):
    """How sources are mixed: `num_sources` of them, drawn in proportion to `weights`, positive or zero.

    The weights are normalised: `weights` holds shares that sum to 1.

    `placement` says where rows are gathered: on the `host`, on the `device`, or `auto` by size and backend.
    `source_names` are the names of the sources where theirs shall not hold. Raises ValueError, naming the field, for
    what is missing or inconsistent.
    """

    num_sources: int | None = None
    weights: tuple[float, ...] | None = None
    _: KW_ONLY
    placement: str = "auto"
    source_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stochastic:
            raise ValueError("stochastic must be False: mixing is deterministic, every batch follows from its key")
        if self.num_sources is None or self.weights is None:
            raise ValueError(f"num_sources and weights are required, got {self.num_sources} and {self.weights}")
        if isinstance(self.num_sources, bool) or not isinstance(self.num_sources, Integral):
            raise ValueError(f"num_sources must be an integer, got {self.num_sources!r}")
        object.__setattr__(self, "num_sources", int(self.num_sources))
        if self.num_sources < 1:
            raise ValueError(f"num_sources must be at least 1, got {self.num_sources}")
        if isinstance(self.weights, np.ndarray | jax.Array):
            object.__setattr__(self, "weights", np.asarray(self.weights).tolist())
        if isinstance(self.weights, str | bytes | Mapping | Set) or not isinstance(self.weights, Iterable):
            raise ValueError(f"weights must be a tuple, list or array of numbers, got {self.weights!r}")
        if not isinstance(self.weights, tuple):
            object.__setattr__(self, "weights", tuple(self.weights))
        if len(self.weights) != self.num_sources:
            raise ValueError(f"weights must be num_sources = {self.num_sources} numbers, got {len(self.weights)}")
        if self.source_names is not None:
            names = self.source_names
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"source_names must be a tuple of strings, got {names!r}")
            if len(names) != self.num_sources:
                raise ValueError(f"source_names must be num_sources = {self.num_sources} names, got {names}")
            object.__setattr__(self, "source_names", tuple(names))
        object.__setattr__(self, "weights", normalised(self.weights))
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, got {self.placement!r}")
