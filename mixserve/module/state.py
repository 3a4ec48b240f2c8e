"""Trees of a module's state: plain values for checkpoints, and strict checks of restored ones."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixserve_client.schema.dtypes import DTYPES
from mixserve_client.wire.value import decode_value, encode_value

State = dict[str, Any]

_OBJECT_BYTES = 64  # an estimate: a Python object and its place in a container


class Frozen(dict[Any, Any]):
    """A private copy, never changed, of values that the wire can hold; its digest is computed once.

    States hold frozen statistics as they are, so that saving a session costs only as much as has changed.
    """

    def __init__(self, values: Mapping[Any, Any]):
        """Raises TypeError or ValueError for values that no message can hold."""
        data = encode_value(values)
        super().__init__(decode_value(data))
        self.bytes = value_bytes(dict(self))
        self.digest = hashlib.blake2b(data, digest_size=16).digest()


def value_bytes(value: Any) -> int:
    """An estimate of the bytes of memory that a value from the wire takes; frozen parts are counted elsewhere."""
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
    """`value` as dicts, lists, NumPy arrays, numbers and strings; 0-d arrays become numbers, PRNG keys their words.

    Raises TypeError, which names the path, for anything else.
    """
    return _on_host(value, path, keep_kinds=False)


def plain_statistics(values: Any, path: str) -> Any:
    """As `plain`, but tuples stay tuples, and 0-d arrays and NumPy scalars keep their dtypes.

    So the user gets the same statistics before saving and after restoring a state.
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
        # A scalar of a dtype that no message can hold, such as text, becomes Python's.
        is_number = not np.shape(value) and not (keep_kinds and DTYPES.get(value.dtype.name) == value.dtype)
        return value.item() if is_number else value if isinstance(value, np.generic) else np.array(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state may hold dicts of arrays, numbers and strings; {path} is {type(value).__name__}")


def check_same_shape(expected: Any, given: Any, path: str = "") -> None:
    """Raises ValueError, which names the path, for missing or unknown keys, and for leaves of another type, shape or
    dtype."""
    at = path or "the state"
    if isinstance(expected, list) and isinstance(given, list):
        expected, given = dict(enumerate(expected)), dict(enumerate(given))
    if isinstance(expected, dict):
        if not isinstance(given, Mapping):
            raise ValueError(f"{at} must be a dict with the keys {_keys(expected)}, got {_describe(given)}")
        for name in sorted(expected.keys() ^ given.keys(), key=str):
            said = "is missing" if name in expected else f"does not belong here, allowed are {_keys(expected)}"
            raise ValueError(f"{below(path, name)} {said}")
        for name, child in expected.items():
            check_same_shape(child, given[name], below(path, name))
    elif _kind(expected) != _kind(given):
        raise ValueError(f"{at} must be {_describe(expected)}, got {_describe(given)}")


def below(path: str, step: Any) -> str:
    """The path of an entry, for messages. Cut to 100 characters, since keys from the wire may have any length."""
    return f"{path}.{step!s:.100}" if path else f"{step!s:.100}"


def _kind(leaf: Any) -> Any:
    """What must be equal in two leaves: shape and dtype of arrays, else the type.

    Some checkpoints return Python's numbers as NumPy scalars or 0-d arrays, which count as their Python types.
    """
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return (leaf.shape, leaf.dtype) if np.shape(leaf) else type(leaf.item())
    return type(leaf)


def _describe(leaf: Any) -> str:
    kind = _kind(leaf)
    return f"an array {kind[1]}{list(kind[0])}" if isinstance(kind, tuple) else f"{kind.__name__} {leaf!r:.100}"


def _keys(mapping: dict[Any, Any]) -> str:
    names = ", ".join(sorted(map(str, mapping))) or "none"
    return f"{names:.500}"


def pop_entry(state: State, name: str, kind: type, path: str) -> Any:
    """Remove and return the entry `name` of `state`. Raises ValueError if it is missing or of another type."""
    if name not in state:
        raise ValueError(f"{below(path, name)} is missing")
    value = state.pop(name)
    if not isinstance(value, kind):
        raise ValueError(f"{below(path, name)} must be of the type {kind.__name__}, got {value!r:.100}")
    return value
