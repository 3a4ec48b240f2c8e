"""PRNG keys in all forms that users may pass -> two uint32 words."""

import operator
import sys
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import show

IMPLEMENTATION = "threefry2x32"
_ALLOWED = (
    "key must be an integer seed in 0..2^32-1, an array of two uint32 words, or a jax.random.key of the "
    f"{IMPLEMENTATION} implementation"
)

KeyWords = npt.NDArray[np.uint32]


def key_words(key: Any) -> KeyWords:
    """The words of `key`: uint32, shape (2,). An integer seed s gives `[0, s]`, as `jax.random.key(s)` does.

    Raises InvalidRequest for None, other shapes and dtypes, seeds out of range, and keys of other implementations:
    their bits depend on the rest of the batch, so a batch would not be a function of its position.
    """
    if key is None:
        raise InvalidRequest(f"{_ALLOWED}; got None, and a batch is not defined without a key")
    if isinstance(key, bool | np.bool_):
        raise InvalidRequest(f"{_ALLOWED}; got {key!r:.100}")
    if isinstance(key, int | np.integer):
        seed = operator.index(cast(int, key))
        if not 0 <= seed < 1 << 32:
            raise InvalidRequest(f"{_ALLOWED}; got the seed {show(seed)}")
        return np.array([0, seed], np.uint32)
    if _is_typed_jax_key(key):
        return _typed_key_words(key)
    return _raw_words(key)


def _raw_words(key: Any) -> KeyWords:
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is None and isinstance(key, list | tuple):
        return _list_words(list(key))  # pyright: ignore[reportUnknownArgumentType]
    if dtype != np.uint32 or shape != (2,):
        what = type(key).__name__ if dtype is None else f"an array of shape {shape} and dtype {dtype}"
        raise InvalidRequest(f"{_ALLOWED}; got {what}")
    return np.array(key, np.uint32)


def _list_words(words: list[Any]) -> KeyWords:
    try:  # also of NumPy scalars and 0-dimensional arrays, into which checkpointers turn integers
        found = [-1 if isinstance(word, bool | np.bool_) else operator.index(word) for word in words]
    except TypeError:
        found = []
    if len(found) != 2 or not all(0 <= word < 1 << 32 for word in found):
        raise InvalidRequest(f"{_ALLOWED}; got {show(words, 200)}")
    return np.array(found, np.uint32)


def check_wire_key(implementation: str, words: list[int]) -> KeyWords:
    """The words of a key that came over the wire: uint32, shape (2,). Raises InvalidRequest for other keys."""
    if implementation != IMPLEMENTATION:
        raise InvalidRequest(f"key.implementation must be {IMPLEMENTATION!r}, got {implementation!r:.100}")
    if len(words) != 2:
        more = " or more" if len(words) > 2 else ""
        raise InvalidRequest(f"key.words must be 2 words of 32 bits, got {len(words)}{more} words")
    return np.array(words, np.uint32)


def _is_typed_jax_key(key: Any) -> bool:
    return str(getattr(key, "dtype", "")).startswith("key<")


def _typed_key_words(key: Any) -> KeyWords:
    # Not imported, since the client works without JAX: a typed key exists only if the user has loaded it.
    jax = sys.modules["jax"]
    implementation = str(jax.random.key_impl(key))
    if implementation != IMPLEMENTATION:
        raise InvalidRequest(f"{_ALLOWED}; got a key of the implementation {implementation!r:.100}")
    if key.shape != ():
        raise InvalidRequest(f"{_ALLOWED}; got an array of keys of shape {key.shape}; pass one of them")
    with jax.ensure_compile_time_eval():  # gives the words even while JAX traces a program
        return np.asarray(jax.random.key_data(key), np.uint32)
