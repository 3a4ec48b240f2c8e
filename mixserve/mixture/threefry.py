"""Threefry-2x32, spelled out: the same words as JAX's own, from one piece of code instead of a loop.

JAX runs its rounds in a loop on CPUs, so that programs compile quickly. A plan hashes a few words many times over, and
there the loops cost more than the hashing: without them plans of up to 256 positions take two thirds of the time. Where
many words are hashed at once JAX's loop is the faster one.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, with 20 rounds.
"""

# JAX's own signatures are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl
from jax.lax import iota
from jaxtyping import Array, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)

Word = UInt32[Array, "*shape"]


def threefry(key: tuple[Word, Word], counter: tuple[Word, Word]) -> tuple[Word, Word]:
    """The words that `counter` becomes under `key`, element by element."""
    schedule = (*key, key[0] ^ key[1] ^ _PARITY)
    left, right = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            left = left + right
            right = left ^ (right << np.uint32(by) | right >> np.uint32(32 - by))
        left = left + schedule[(group + 1) % 3]
        right = right + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return left, right


# Traced and lowered once per shape, not at each of its uses: a draw's program is made in half the time.
hashed = jax.jit(threefry)


def _of_counters(key: UInt32[Array, "2"], size: int) -> tuple[Word, Word]:
    counters = iota(jnp.uint32, size)
    return hashed((key[0], key[1]), (jnp.zeros_like(counters), counters))


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
    return jnp.stack(hashed((key[0], key[1]), (jnp.zeros_like(data), data)))


# Keys of it draw in `jax.random` what keys of threefry2x32 draw with `threefry_partitionable` on.
SPELLED_OUT = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_spelled_out",
    tag="tfs",
)
