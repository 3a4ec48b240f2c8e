"""Trees of a module's state: plain values for checkpoints, and strict comparison of what comes back from one."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

State = dict[str, Any]


def plain(value: Any, path: str) -> Any:
    """`value` as dicts, lists, NumPy arrays, numbers (arrays of no dimension too) and strings; PRNG keys as words.

    Raises TypeError, naming the path, for anything else.
    """
    if isinstance(value, Mapping):
        return {key: plain(child, below(path, key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child, below(path, index)) for index, child in enumerate(value)]
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return np.array(value) if np.shape(value) else value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state holds dicts of arrays, numbers and strings; {path} is {type(value).__name__}")


def check_same_shape(expected: Any, given: Any, path: str = "") -> None:
    """Raises ValueError, naming the path, for keys that are missing or too many, and for leaves of another kind,
    shape or dtype."""
    at = path or "the state"
    if isinstance(expected, list) and isinstance(given, list):
        expected, given = dict(enumerate(expected)), dict(enumerate(given))
    if isinstance(expected, dict):
        if not isinstance(given, Mapping):
            raise ValueError(f"{at} must be a dict with the keys {_keys(expected)}, got {_shown(given)}")
        for name in sorted(expected.keys() ^ given.keys(), key=str):
            said = "is missing" if name in expected else f"does not belong here, allowed are {_keys(expected)}"
            raise ValueError(f"{below(path, name)} {said}")
        for name, child in expected.items():
            check_same_shape(child, given[name], below(path, name))
    elif _kind(expected) != _kind(given):
        raise ValueError(f"{at} must be {_shown(expected)}, got {_shown(given)}")


def below(path: str, step: Any) -> str:
    """The path of an entry, for messages. What comes over the wire may have keys of any length."""
    return f"{path}.{step!s:.100}" if path else f"{step!s:.100}"


def _kind(leaf: Any) -> Any:
    """What two leaves must share. Some checkpoints give numbers back as scalars of NumPy or arrays of no dimension."""
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return (leaf.shape, leaf.dtype) if np.shape(leaf) else type(leaf.item())
    return type(leaf)


def _shown(leaf: Any) -> str:
    kind = _kind(leaf)
    return f"an array {kind[1]}{list(kind[0])}" if isinstance(kind, tuple) else f"{kind.__name__} {leaf!r:.100}"


def _keys(mapping: dict[Any, Any]) -> str:
    names = ", ".join(sorted(map(str, mapping))) or "none"
    return f"{names:.500}"
