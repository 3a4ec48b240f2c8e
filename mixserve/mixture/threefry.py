"""Threefry-2x32 with its rounds spelled out: the same words as JAX's implementation, without its loop.

On CPUs JAX runs the rounds in a loop, so that programs compile quickly. A plan hashes a few words at a time, many
times, and the loop costs more than the hashing: without it plans of up to 256 positions take two thirds of the time. To
hash many words at once, JAX's loop is faster.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, with 20 rounds.
"""

# JAX's own signatures have types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl
from jax.lax import iota
from jaxtyping import Array, UInt32

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA

Word = UInt32[Array, "*shape"]


def threefry(key: tuple[Word, Word], counter: tuple[Word, Word]) -> tuple[Word, Word]:
    """The two words of `counter` hashed under `key`, element by element; uint32 of NumPy or JAX."""
    schedule = (*key, key[0] ^ key[1] ^ np.uint32(PARITY))
    left, right = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for by in ROTATIONS[group % 2]:
            left = left + right
            right = left ^ (right << np.uint32(by) | right >> np.uint32(32 - by))
        left = left + schedule[(group + 1) % 3]
        right = right + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return left, right


# Jitted, so that JAX traces and lowers it once per shape, not at each use: a draw's program is made in half the time.
hash_words = jax.jit(threefry)


def _of_counters(key: UInt32[Array, "2"], size: int) -> tuple[Word, Word]:
    counters = iota(jnp.uint32, size)
    return hash_words((key[0], key[1]), (jnp.zeros_like(counters), counters))


def _seed(seed: Array) -> UInt32[Array, "2"]:
    return jnp.stack([jnp.zeros((), jnp.uint32), seed.astype(jnp.uint32)])


def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "*shape 2"]:
    return jnp.stack(_of_counters(key, math.prod(shape)), axis=-1).reshape(*shape, 2)


def _random_bits(key: UInt32[Array, "2"], bit_width: int, shape: tuple[int, ...]) -> Array:
    if bit_width != 32:
        raise NotImplementedError(f"bit_width must be 32, got {bit_width}")
    left, right = _of_counters(key, math.prod(shape))
    return (left ^ right).reshape(shape)


def _fold_in(key: UInt32[Array, "2"], data: Any) -> UInt32[Array, "2"]:
    return jnp.stack(hash_words((key[0], key[1]), (jnp.zeros_like(data), data)))


# In `jax.random` its keys draw the same bits as keys of threefry2x32 with `threefry_partitionable` on.
SPELLED_OUT = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_spelled_out",
    tag="tfs",
)
