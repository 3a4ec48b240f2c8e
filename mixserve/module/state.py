"""Trees of a module's state: plain values for checkpoints, and strict comparison of what comes back from one."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixserve_client.schema.dtypes import DTYPES
from mixserve_client.wire.value import decode_value, encode_value

State = dict[str, Any]

_OBJECT_BYTES = 64  # a Python object, and its place in a container


class Frozen(dict[Any, Any]):
    """A private copy of values that the wire can hold, which nobody changes: its digest is made once.

    States hold such statistics as they are, so that writing down a session costs what has changed of it.
    """

    def __init__(self, values: Mapping[Any, Any]):
        """Raises TypeError and ValueError for what no message can hold."""
        data = encode_value(values)
        super().__init__(decode_value(data))
        self.bytes = value_bytes(dict(self))
        self.digest = hashlib.blake2b(data, digest_size=16).digest()


def value_bytes(value: Any) -> int:
    """About how much memory a value takes that came over the wire; what is frozen is counted by who froze it."""
    if isinstance(value, Frozen):
        return 0
    if isinstance(value, Mapping):
        return _OBJECT_BYTES + sum(value_bytes(key) + value_bytes(child) for key, child in value.items())
    if isinstance(value, list | tuple):
        return _OBJECT_BYTES + sum(map(value_bytes, value))
    return _OBJECT_BYTES + (
        value.nbytes if isinstance(value, np.ndarray) else len(value) if isinstance(value, str) else 0
    )


def plain(value: Any, path: str) -> Any:
    """`value` as dicts, lists, NumPy arrays, numbers (arrays of no dimension too) and strings; PRNG keys as words.

    Raises TypeError, naming the path, for anything else.
    """
    return _on_host(value, path, keep_kinds=False)


def plain_statistics(values: Any, path: str) -> Any:
    """As `plain`, but tuples stay tuples, and arrays of no dimension and NumPy scalars keep their dtypes.

    The user gets these back as they are, before and after a state was saved.
    """
    return _on_host(values, path, keep_kinds=True)


def _on_host(value: Any, path: str, *, keep_kinds: bool) -> Any:
    if isinstance(value, Frozen):
        return value
    if isinstance(value, Mapping):
        return {key: _on_host(child, below(path, key), keep_kinds=keep_kinds) for key, child in value.items()}
    if isinstance(value, list | tuple):
        children = [_on_host(child, below(path, place), keep_kinds=keep_kinds) for place, child in enumerate(value)]
        return tuple(children) if keep_kinds and isinstance(value, tuple) else children
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        # A scalar of a dtype that no message holds, as text, is kept as Python's.
        is_number = not np.shape(value) and not (keep_kinds and DTYPES.get(value.dtype.name) == value.dtype)
        return value.item() if is_number else value if isinstance(value, np.generic) else np.array(value)
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
