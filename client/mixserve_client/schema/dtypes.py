"""The table of all dtypes: name on the wire <-> NumPy dtype. Other dtypes are an error on both ends."""

from typing import Any

import ml_dtypes
import numpy as np

DType = np.dtype[Any]

_NAMES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML_NAMES = (
    *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
DTYPES: dict[str, DType] = {name: np.dtype(name) for name in _NAMES} | {
    name: np.dtype(getattr(ml_dtypes, name)) for name in _ML_NAMES
}


def dtype_named(name: str) -> DType:
    """The NumPy dtype of a name on the wire. Raises KeyError with the allowed names."""
    try:
        return DTYPES[name]
    except KeyError:
        raise KeyError(f"dtype must be one of {', '.join(DTYPES)}; got {name!r:.100}") from None


def dtype_name(dtype: DType) -> str:
    """The name of a NumPy dtype on the wire. Raises TypeError with the allowed names, also for big-endian dtypes."""
    # Not by name alone: big-endian dtypes have the names of native ones.
    if DTYPES.get(dtype.name) != dtype:
        raise TypeError(f"dtype must be one of {', '.join(DTYPES)}, in native little-endian order; got {dtype!r}")
    return dtype.name
