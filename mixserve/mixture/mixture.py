"""Sources and their weights, checked once -> all that a batch is computed from: fields, planner, gatherer."""

import functools
import math
import operator
from collections.abc import Sequence
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Int32

from mixserve.mixture.fingerprint import fingerprint
from mixserve.mixture.gather import HostGather
from mixserve.mixture.plan import Planner
from mixserve.mixture.spec import common_fields
from mixserve.sources import Source

SAMPLING = "categorical"


class Mixture:
    """An immutable mixture; it reads from its sources and holds no state of its own."""

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], names: Sequence[str] | None = None):
        """Raises ValueError for weights that are no shares, for sources whose names or specs clash, and for a source
        without records that has a share."""
        self.sources = tuple(sources)
        self.names = _distinct(_own_names(sources) if names is None else names)
        self.weights = normalised(weights)
        if len(self.weights) != len(self.sources):
            raise ValueError(f"weights must be as many as sources, got {len(self.weights)} for {len(self.sources)}")
        for name, source, weight in zip(self.names, self.sources, self.weights, strict=True):
            if len(source) == 0 and weight > 0:
                raise ValueError(f"the source {name!r} has no records but the weight {weight}; give it the weight 0")
        self.fields = common_fields(self.names, [source.element_spec() for source in self.sources])
        self.lengths = tuple(len(source) for source in self.sources)
        self.planner = Planner(self.weights, self.lengths)
        self.host_gather = HostGather(self.sources, self.fields)

    @cached_property
    def device_starts(self) -> Int32[np.ndarray, " sources"]:
        """The row of each source's first record in the arrays that `device.upload` makes."""
        return np.cumsum([0, *self.lengths])[:-1].astype(np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; computed at the first use, since it reads the sources."""
        return fingerprint(
            names=self.names,
            sources=self.sources,
            weights=self.weights,
            fields=self.fields,
            sampling=SAMPLING,
            planner=self.planner,
        )


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """The weights as float64 shares that sum to 1. Raises ValueError."""
    for weight in weights:
        if not isinstance(weight, Real):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"weights must be numbers, got {weight!r}")
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weights must be positive or zero, and finite, got {weight!r} in {tuple(weights)}")
    # From left to right: `sum` compensates rounding from Python 3.12 on, and shares must not depend on that.
    total = functools.reduce(operator.add, map(float, weights), 0.0)
    if not 0 < total < math.inf:
        raise ValueError(f"weights must have a positive, finite sum, got {tuple(weights)}")
    return tuple(float(weight) / total for weight in weights)


def _own_names(sources: Sequence[Any]) -> list[str]:
    """Each source's `name`, else its index."""
    names = [getattr(source, "name", None) for source in sources]
    return [str(index) if name is None else str(name) for index, name in enumerate(names)]


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"sources of a mixture must have different names, got {sorted(twice)} more than once")
    return tuple(names)
