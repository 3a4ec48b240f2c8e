"""Durations -> how many lie in each bucket."""

from collections.abc import Sequence

import numpy as np

from mixserve_client.schema.stats import Sample

# Seconds: from a small batch out of the processor's cache to a source that hangs.
SECONDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0
)  # fmt: skip
_BOUNDS = np.array(SECONDS)


class Histogram:
    """Durations in buckets whose bounds are `SECONDS`. For one thread at a time."""

    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = np.zeros(len(SECONDS) + 1, np.int64)
        self._sum = 0.0

    def add(self, seconds: "Sequence[float] | np.ndarray") -> None:
        """Count these durations."""
        values = np.asarray(seconds, np.float64)
        places = np.searchsorted(_BOUNDS, values)  # a duration equal to a bound lies below it, as Prometheus counts
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(values.sum())

    def merge(self, other: "Histogram") -> None:
        """Count what `other` has counted, too."""
        self._counts += other._counts
        self._sum += other._sum

    def sample(self, labels: tuple[str, ...]) -> Sample:
        """The values now."""
        return Sample(labels, self._sum, tuple(self._counts.tolist()))
