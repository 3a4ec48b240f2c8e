"""Values with arrays in them -> what JSON has."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """`value` for JSON: arrays as lists; NaN and infinities, which JSON does not have, as strings."""
    match value:
        case Mapping():
            return {str(key): plain(child) for key, child in value.items()}
        case list() | tuple():
            return [plain(child) for child in value]
        case np.ndarray():
            # Dtypes from outside NumPy (bfloat16, float8, …) have no `tolist` that JSON can write.
            return plain((value if value.dtype.isbuiltin == 1 else value.astype(np.float64)).tolist())
        case complex():
            return str(value)
        case float() if not math.isfinite(value):
            return str(value)
        case _:
            return value
