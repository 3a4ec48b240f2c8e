"""Values of several repetitions -> the median, and the middle half of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the middle half of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.digits(self.median)} ({self.digits(self.low)} to {self.digits(self.high)})"

    @staticmethod
    def digits(value: float) -> str:
        """Three of them, and no fewer than stand before the point."""
        return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def spread(values: Sequence[float]) -> Spread | None:
    """None of no values, and where one of them is not a number."""
    if not values or np.isnan(values).any():
        return None
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Spread(median, low, high)
