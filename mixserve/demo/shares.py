"""A share and a number of rows -> the band of realised shares that chance allows."""

from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.99


def binomial_band(
    share: float, rows: Int[np.ndarray, " steps"], *, level: float = LEVEL
) -> tuple[Float[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Lower and upper end of the band that has the realised share with probability `level`.

    The number of rows of a source is binomial; this is its normal approximation, cut at 0 and 1.
    """
    reach = NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(share * (1 - share) / np.asarray(rows))
    return np.clip(share - reach, 0, 1), np.clip(share + reach, 0, 1)
