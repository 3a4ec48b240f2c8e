"""Values of several repetitions -> their median and quartiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The median and quartiles of some rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.digits(self.median)} ({self.digits(self.low)} to {self.digits(self.high)})"

    @staticmethod
    def digits(value: float) -> str:
        """Format with three significant digits, and never fewer than the integer part has."""
        return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def spread(values: Sequence[float]) -> Spread | None:
    """The median and quartiles; None if there are no values or one of them is NaN."""
    if not values or np.isnan(values).any():
        return None
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Spread(median, low, high)
